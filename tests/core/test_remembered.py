"A baseline that is asked once: the right logits for each image, whatever the loader, a kill or a change in between."
import random
import numpy as np, pytest, torch
from fastai.vision.all import Callback, Learner, WeightedDL, accuracy, nn, set_seed
from fastai.callback.mixup import MixUp

from helpers.learners import CtrlC, InBatch, quiet, same, small, state
from focusnet_fastai.data.digits import digits_dls
from focusnet_fastai.data.memory import CropBatch, InMemoryLoaders
from focusnet_fastai.focusnet import FocusNetCallback
from focusnet_fastai.models import thin_resnet
from focusnet_fastai.reference import Baseline
from focusnet_fastai.remembered import LogitStore, RememberedBaseline, keep_order, store_bytes

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


@pytest.mark.parametrize('kind', ['shuffled', 'in order', 'workers', 'odd last batch', 'weighted'])
def test_each_image_has_its_logits(thin, kind):
    dls = small(n_train=72 if kind == 'odd last batch' else 64, bs=16, shuffle=kind != 'in order', drop_last=False, num_workers=2 if kind == 'workers' else 0)
    if kind == 'weighted': dls.loaders[0] = dls.train.new(cls=WeightedDL, wgts=np.arange(64)+1., shuffle=True)
    assert difference(learner(dls), thin, [FocusNetCallback(RememberedBaseline(thin))]) < .02


class Count(Callback):
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
        with quiet(learn): learn.fit(3, 1e-3, cbs=[FocusNetCallback(RememberedBaseline(thin, folder=tmp_path)), Count()])
        assert [o if o == 0 else 64 for o in learn.images] == want


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


@pytest.mark.parametrize('what', ['transform', 'mixup'])
def test_other_images_each_epoch_are_refused(thin, what):
    dls = small(n_train=64, bs=16)
    if what == 'transform': dls.train.after_batch.add(CropBatch(pad=2))
    learn = learner(dls, cbs=MixUp() if what == 'mixup' else None)
    with quiet(learn), pytest.raises(ValueError, match='use `Baseline`'): learn.fit(1, cbs=FocusNetCallback(RememberedBaseline(thin)))


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
