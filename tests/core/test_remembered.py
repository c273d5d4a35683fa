"A baseline that is asked once: the right logits for each image, whatever the loader, a kill or a change in between."
import os, random, signal
import numpy as np, pytest, torch
from fastai.vision.all import Callback, Learner, WeightedDL, accuracy, nn, set_seed
from fastai.callback.mixup import CutMix, MixUp

from helpers.learners import CtrlC, InBatch, quiet, same, small, state
from focusnet_fastai.data.digits import digits_dls
from focusnet_fastai.data.fixed_views import fixed_views
from focusnet_fastai.data.memory import CropBatch, FlipBatch, InMemoryLoaders
from focusnet_fastai.focusnet import FocusNetCallback
from focusnet_fastai.models import thin_resnet
from focusnet_fastai.record import RunError, free_disk
from focusnet_fastai.reference import Baseline
from focusnet_fastai.frozen import FrozenNetwork
from focusnet_fastai.remembered import LogitStore, RememberedBaseline, RememberedNetwork, store_bytes
from focusnet_fastai.image_order import keep_order

pytestmark = pytest.mark.filterwarnings('ignore:.*no better than guessing')


def learner(dls, seed=1, **kw):
    set_seed(seed)
    dls.train.rng = random.Random(seed)
    return Learner(dls, thin_resnet(10, 1), metrics=accuracy, **kw)


@pytest.fixture(scope='module')
def thin(dls):
    learn = learner(dls, 0)
    with quiet(learn): learn.fit(1, 1e-2)
    return learn


def difference(learn, base, cbs=(), epochs=2):
    "The largest difference between what is looked up and what the baseline says of the batch, and what it was asked"
    seen = []
    def look(l):
        with torch.no_grad(): want = base.model.eval()(l.x)
        seen.append((want-l.focus_net.baseline_logits).abs().max().item())
    with quiet(learn): learn.fit(epochs, 1e-3, cbs=[*cbs, InBatch(look)])
    return max(seen)


@pytest.mark.slow
@pytest.mark.parametrize('kind', ['shuffled', 'in order', 'workers', 'odd last batch', 'weighted'])
def test_each_image_has_its_logits(thin, kind):
    dls = small(n_train=72 if kind == 'odd last batch' else 64, bs=16, shuffle=kind != 'in order', drop_last=False, num_workers=2 if kind == 'workers' else 0)
    if kind == 'weighted': dls.loaders[0] = dls.train.new(cls=WeightedDL, wgts=np.arange(64)+1., shuffle=True)
    assert difference(learner(dls), thin, [FocusNetCallback(RememberedBaseline(thin))]) < .02


class CountImages(Callback):
    "How many images the baseline is asked about in each epoch"
    run_valid = False
    def before_train(self): self.learn.images = getattr(self.learn, 'images', []) + [0]
    def after_pred(self): pass
    def before_batch(self):
        if self.iter == 0: self.handle = self.focus_net.frozen.frozen.register_forward_hook(self.look)
    def look(self, m, args, out): self.learn.images[-1] += len(out)
    def after_train(self): self.handle.remove()


def test_asked_once_and_never_again_from_a_folder(thin, tmp_path):
    for want in ([64, 0, 0], [0, 0, 0]):
        learn = learner(small(n_train=64, bs=16))
        with quiet(learn): learn.fit(3, 1e-3, cbs=[FocusNetCallback(RememberedBaseline(thin, folder=tmp_path)), CountImages()])
        assert [o if o == 0 else 64 for o in learn.images] == want


@pytest.mark.slow
@pytest.mark.parametrize('change', ['images', 'network', 'transforms', 'k', 'precision', 'classes'])
def test_a_change_asks_again(thin, tmp_path, change):
    def places(): return {o.name for o in tmp_path.iterdir()}
    def fit(base, dls):
        learn = learner(dls)
        with quiet(learn): learn.fit(1, 1e-3, cbs=FocusNetCallback(base))
    fit(RememberedBaseline(thin, folder=tmp_path), small(n_train=64, bs=16))
    before, kw, dls, base = places(), {}, small(n_train=64, bs=16), thin
    if change == 'images': dls.train_ds.x = dls.train_ds.x.clone(); dls.train_ds.x[3] = 1-dls.train_ds.x[3]
    if change == 'network': base = learner(dls, 7)
    if change == 'transforms': dls.train.after_batch.fs[-1].mean = dls.train.after_batch.fs[-1].mean+.1; base = thin.model
    if change == 'k': kw = dict(k=3)
    if change == 'precision': kw = dict(precision='bf16')
    if change == 'classes': base, kw = thin.model, dict(vocab=[str(9-o) for o in range(10)])
    fit(RememberedBaseline(base, folder=tmp_path, **kw), dls)
    assert len(places()) == len(before)+1


@pytest.mark.slow
def test_killed_in_the_middle_and_bit_equal(thin, tmp_path):
    "Rows of an unfinished epoch are asked for again; the result is that of a training that nothing happened to"
    def fit(folder, *cbs, epochs=2):
        learn = learner(small(n_train=64, bs=16))
        with quiet(learn): learn.fit(epochs, 1e-2, cbs=[FocusNetCallback(RememberedBaseline(thin, folder=folder)), *cbs])
        return learn
    whole = fit(tmp_path/'whole')
    with pytest.raises(KeyboardInterrupt): fit(tmp_path/'broken', CtrlC('after_batch'))
    store = next((tmp_path/'broken').iterdir())
    assert not (store/'filled').exists()
    assert same(state(whole.model), state(fit(tmp_path/'broken').model))
    assert same(state(whole.model), state(fit(tmp_path/'broken').model))


def test_k_strongest():
    z = torch.randn(6, 50)*4
    store = LogitStore(10, 50, k=5)
    store.put([9, 1, 4, 0, 2, 3], z)
    got = store.get([4, 9])
    assert torch.allclose(got.topk(5).values, z[[2, 0]].topk(5).values, atol=.02) and torch.equal(got.topk(5).indices, z[[2, 0]].topk(5).indices)
    assert torch.allclose(got.logsumexp(1), z[[2, 0]].logsumexp(1), atol=.02)
    assert store_bytes(1_281_167, 1000, 10) == 1_281_167*43 and LogitStore(3, 4, k=9).k is None


@pytest.mark.parametrize('cb,words', [(None, r'CropBatch makes other images.*`fixed_views\(dls, 10\)`.*use `Baseline`'), (MixUp, 'MixUp blends other images.*use `Baseline`'),
                                      (CutMix, 'CutMix blends')])
def test_other_images_each_epoch_are_refused(thin, cb, words):
    dls = small(n_train=64, bs=16)
    if cb is None: dls.train.after_batch.add(CropBatch(pad=2))
    learn = learner(dls, cbs=cb and cb())
    with quiet(learn), pytest.raises(ValueError, match=words): learn.fit(1, cbs=FocusNetCallback(RememberedBaseline(thin)))


# --- fixed views ------------------------------------------------------------------------------------------------------------

def views_of(dls, views=2, **kw):
    dls.train.after_batch.fs[:0] = [CropBatch(pad=4), FlipBatch()]
    return fixed_views(dls, views, **kw)


def test_each_view_has_its_logits(thin):
    assert difference(learner(views_of(small(n_train=72, bs=16, drop_last=False), 3)), thin, [FocusNetCallback(RememberedBaseline(thin.model))], 4) < .02


@pytest.mark.slow
def test_each_view_is_asked_once(thin, tmp_path):
    "Never the same view twice, also by a later training; other views are other logits"
    def asked(dls, epochs=6):
        learn = learner(dls)
        with quiet(learn): learn.fit(epochs, 1e-3, cbs=[FocusNetCallback(RememberedBaseline(thin.model, folder=tmp_path)), CountImages()])
        return learn.images
    first = asked(views_of(small(n_train=64, bs=16)))
    assert first[0] == 48 and 0 < first[1] < 64 and sum(first) < 2*64  # the very first batch is asked about before it is watched
    store = next(tmp_path.iterdir())
    filled = np.frombuffer((store/'filled').read_bytes(), bool)
    assert len(filled) == 128 and filled.sum() > 110
    again = asked(views_of(small(n_train=64, bs=16)), 2)
    assert sum(again) <= 128-filled.sum()
    asked(views_of(small(n_train=64, bs=16), 3), 1)
    asked(views_of(small(n_train=64, bs=16), seed=1), 1)
    assert len(list(tmp_path.iterdir())) == 3


# --- killed -----------------------------------------------------------------------------------------------------------------

class Killed(Callback):
    "SIGKILL before a batch"
    run_valid, order = False, 30
    def __init__(self, epoch, at): self.at = epoch, at
    def before_batch(self):
        if (self.epoch, self.iter) == self.at: os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.skipif(not hasattr(os, 'fork'), reason='needs fork')
@pytest.mark.parametrize('kind', ['same', 'views', 'strongest'])
@pytest.mark.slow
def test_sigkill_leaves_no_wrong_row(thin, tmp_path, kind):
    "Killed in the first epoch and in a later one; every row that is believed is what the network says, and the training ends as if nothing had been"
    k = 3 if kind == 'strongest' else None
    def loaders(): return views_of(small(n_train=64, bs=16)) if kind == 'views' else small(n_train=64, bs=16)
    def fit(folder, *cbs):
        learn = learner(loaders())
        with quiet(learn): learn.fit(3, 1e-2, cbs=[FocusNetCallback(RememberedBaseline(thin.model, folder=folder, k=k)), *cbs])
        return state(learn.model)
    want = fit(tmp_path/'whole')
    for at in ((0, 2), (1, 1), (2, 3)):
        pid = os.fork()
        if pid == 0:
            try: fit(tmp_path/'cut', Killed(*at))
            finally: os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
        if at == (0, 2): assert not list((tmp_path/'cut').rglob('filled'))
    place = next((tmp_path/'cut').iterdir())
    dls = loaders()
    store = LogitStore(len(dls.train_ds)*vars(dls.train).get('views', 1), 10, k, place)
    rows = np.flatnonzero(store.filled)
    assert len(rows) >= 64
    x = dls.train.after_batch(dls.train.view_batch(rows.tolist()) if kind == 'views' else dls.train_ds.batch(rows))[0]
    truth = LogitStore(len(rows), 10, k)
    truth.put(list(range(len(rows))), FrozenNetwork(thin.model)(x))
    assert torch.allclose(store.get(rows), truth.get(list(range(len(rows)))), atol=.02)
    assert same(want, fit(tmp_path/'cut'))


@pytest.mark.parametrize('damage', ['filled cut', 'filled gone', 'rows cut', 'rows gone', 'larger'])
def test_a_damaged_folder_is_not_believed(tmp_path, damage):
    "Files that do not fit each other are begun anew"
    store = LogitStore(8, 10, folder=tmp_path)
    store.put(list(range(8)), torch.randn(8, 10))
    store.save()
    del store
    f = tmp_path/('filled' if 'filled' in damage else 'logits.bin')
    if 'cut' in damage: os.truncate(f, 5)
    elif 'gone' in damage: f.unlink()
    else: os.truncate(f, 8*10*2+2)
    assert not LogitStore(8, 10, folder=tmp_path).filled.any()


# --- room -------------------------------------------------------------------------------------------------------------------

def imagenet(k=None, folder=None):
    "A store as large as ImageNet's, of which nothing is made"
    store = LogitStore(1, 1000, k)
    store.n, store.folder = 1_281_167, folder
    return store


@pytest.mark.parametrize('k,folder,free,words', [
    (None, None, 2*10**9, r'The logits of 1,281,167 images for 1,000 classes would take 2\.6 GB, but only 2\.0 GB of memory are free: '
                          r'keep the strongest of each alone \(`k=10` takes 55 MB\), or keep them in a folder \(`folder=\.\.\.`\)'),
    (10, None, 10**7, 'would take 55 MB, but only 10 MB of memory are free: a smaller `k` takes less, or keep them in a folder'),
    (None, 'new', 10**9, r'1\.0 GB of disk are free: keep the strongest of each alone \(`k=10` takes 55 MB\)$')])
def test_what_has_no_room_is_refused(tmp_path, k, folder, free, words):
    store = imagenet(k, folder and tmp_path/folder)
    with pytest.raises(RunError, match=words): store.check_free(free)
    store.check_free(store_bytes(store.n, 1000, k))


def test_refused_before_anything_is_made(thin, tmp_path, monkeypatch):
    "In the training itself, by the memory that is free, or by the disk; what lies there already needs no more room"
    monkeypatch.setattr('focusnet_fastai.remembered.free_memory', lambda: 1000)
    monkeypatch.setattr('focusnet_fastai.remembered.free_disk', lambda folder: 1000)
    for kw in ({}, dict(folder=tmp_path)):
        learn = learner(small(n_train=64, bs=16))
        with quiet(learn), pytest.raises(RunError, match='The logits of 64 images for 10 classes would take 1.3 kB'): learn.fit(1, cbs=FocusNetCallback(RememberedBaseline(thin, **kw)))
    assert not list(tmp_path.rglob('*.bin'))
    monkeypatch.setattr('focusnet_fastai.remembered.free_disk', free_disk)
    LogitStore(64, 10, folder=tmp_path/'there').save()
    (tmp_path/'there'/'logits.bin').write_bytes(bytes(64*10*2))
    monkeypatch.setattr('focusnet_fastai.remembered.free_disk', lambda folder: 1000)
    assert LogitStore(64, 10, folder=tmp_path/'there').n == 64


def test_validation_and_later_fits(thin):
    "The loader goes on as before, also after Ctrl-C; validation is not looked up"
    dls = small(n_train=64, bs=16)
    learn = learner(dls)
    with quiet(learn):
        with pytest.raises(KeyboardInterrupt): learn.fit(1, cbs=[FocusNetCallback(RememberedBaseline(thin)), CtrlC('after_pred')])
        learn.fit(1, 1e-3)
        assert sorted(dls.train.last_order) == list(range(64))
        p, y = learn.get_preds(ds_idx=0)
        assert torch.equal(y, dls.train_ds.y) and len(learn.validate()) == 2
        assert difference(learn, thin, [FocusNetCallback(Baseline(thin))], 1) < 1e-4
    keep_order(dls.train); keep_order(dls.train)
    assert next(iter(dls.train))[1].tolist() == dls.train_ds.y[dls.train.last_order[:16]].tolist()
