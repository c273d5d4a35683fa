"A few fixed views of each image: the same pixels for the same number, whatever the batch, the worker or the epoch."
import random
import numpy as np, pytest, torch
from PIL import Image
from fastai.vision.all import Brightness, DataLoaders, L, Learner, TfmdDL, load_learner, nn

from helpers.learners import quiet
from focusnet_fastai.data.digits import digits_dls
from focusnet_fastai.data.fixed_views import InMemoryViews, ItemViews, KeptViews, fixed_views
from focusnet_fastai.data.folder import folder_dls
from focusnet_fastai.data.memory import CropBatch, fixed_uniform, FlipBatch, InMemoryDL
from focusnet_fastai.image_order import keep_order

kinds = ['memory', 'files', 'files in workers', 'kept']


@pytest.fixture(scope='module')
def photos(tmp_path_factory):
    "Twelve pictures of two classes, no two pixels alike"
    path = tmp_path_factory.mktemp('views')/'photos'
    rng = np.random.default_rng(0)
    for i in range(12):
        f = path/'ab'[i % 2]/f'{i}.png'
        f.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (50, 60, 3), dtype=np.uint8)).save(f)
    return path


def loaders(kind, photos, tmp_path, views=3):
    "Loaders of about ten images with crops and flips"
    if kind == 'memory': dls = digits_dls(n_train=12, bs=4, device='cpu', batch_tfms=[CropBatch(pad=6), FlipBatch()])
    else: dls = folder_dls(photos, size=24, bs=4, num_workers=2 if 'workers' in kind else 0, device='cpu', cache=tmp_path/'kept' if kind == 'kept' else False)
    return fixed_views(dls, views) if views else dls


def epoch(dl):
    "The images of an epoch by the numbers of their views"
    keep_order(dl)
    x = torch.cat([b[0] for b in dl])
    return dict(zip(dl.last_order, x))


@pytest.mark.parametrize('kind', kinds)
@pytest.mark.slow
def test_a_number_is_a_picture(kind, photos, tmp_path):
    "Over several epochs each number shows the same pixels, each image comes once an epoch, and all views come"
    dl = loaders(kind, photos, tmp_path).train
    seen, n = {}, len(dl.dataset)
    for _ in range(8):
        now = epoch(dl)
        assert len({o//3 for o in now}) == len(now) == n - n % 4*dl.drop_last
        for row, x in now.items(): assert torch.equal(seen.setdefault(row, x), x), row
    assert len(seen) > 2*n and len({x.numpy().tobytes() for x in seen.values()}) > .8*len(seen)
    assert type(dl) is dict(memory=InMemoryViews, kept=KeptViews).get(kind, ItemViews)


def test_workers_show_what_one_process_shows(photos, tmp_path):
    a, b = [loaders(o, photos, tmp_path).train for o in ('files', 'files in workers')]
    for o in (a, b): o.rng = random.Random(0)  # they draw the same views
    a, b = epoch(a), epoch(b)
    assert a.keys() == b.keys() and all(torch.equal(a[o], b[o]) for o in a)


def test_another_seed_shows_other_views(photos, tmp_path):
    dls = loaders('memory', photos, tmp_path, views=0)
    a, b, c = [fixed_views(dls, 1, seed=o).train.view_batch(list(range(12)))[0] for o in (0, 0, 1)]
    assert torch.equal(a, b) and not torch.equal(a, c)


def test_views_are_those_of_the_transforms():
    "A crop lies anywhere in the padded image, half of the images are mirrored"
    x = torch.arange(1, 10, dtype=torch.uint8).view(1, 1, 3, 3).expand(2000, -1, -1, -1)
    from fastai.vision.all import TensorImage
    n, v = np.arange(2000), np.zeros(2000, int)
    crops = CropBatch(pad=1).view(TensorImage(x), 0, n, v)
    corner = torch.bincount(crops[:, 0, 1, 1].int(), minlength=10)[1:]
    assert (corner > 150).all() and corner.sum() == 2000  # each pixel is in the middle about 222 times
    flipped = (FlipBatch().view(TensorImage(x), 0, n, v)[:, 0, 0, 0] == 3).float().mean()
    assert .45 < flipped < .55
    u = fixed_uniform(0, n, v, 0)
    assert abs(np.corrcoef(u, fixed_uniform(0, n, v, 1))[0, 1]) < .07 and abs(np.corrcoef(u, fixed_uniform(0, n, v+1, 0))[0, 1]) < .07
    assert not np.allclose(fixed_uniform(1, 2), fixed_uniform(2, 1))  # the order of the keys counts


@pytest.mark.parametrize('kind', ['memory', 'files', 'kept'])
def test_random_numbers_go_on_as_before(kind, photos, tmp_path):
    dl = loaders(kind, photos, tmp_path).train
    states = random.getstate(), torch.get_rng_state(), np.random.get_state()[1].tolist()
    if kind == 'memory': dl.view_batch([0, 4])
    elif kind == 'kept': dl.kept_batch([0, 4])
    else: dl.do_item(4)
    assert states[0] == random.getstate() and torch.equal(states[1], torch.get_rng_state()) and states[2] == np.random.get_state()[1].tolist()


@pytest.mark.parametrize('kind', ['memory', 'files', 'kept'])
def test_a_learner_trains_validates_and_exports(kind, photos, tmp_path):
    "What is exported is made of plain loaders"
    dls, plain = loaders(kind, photos, tmp_path), loaders(kind, photos, tmp_path, views=0)
    c = dls.one_batch()[0].shape[1]
    learn = Learner(dls, nn.Sequential(nn.Conv2d(c, 4, 3, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, dls.c)), path=tmp_path)
    with quiet(learn):
        learn.fit(1)
        p, _ = learn.get_preds()
        q, _ = learn.get_preds(dl=plain.valid)
        assert torch.equal(p, q)
        learn.export('a.pkl')
        again = load_learner(tmp_path/'a.pkl')
        with again.no_bar(): assert torch.allclose(again.predict(plain.valid_ds[0][0] if kind == 'memory' else plain.valid_ds.items[0])[2], p[0], atol=1e-5)
    assert type(again.dls.train) is (InMemoryDL if kind == 'memory' else TfmdDL)
    if kind != 'memory': assert b'focusnet_fastai.data.fixed_views' not in (tmp_path/'a.pkl').read_bytes()


def test_refusals(photos, tmp_path):
    with pytest.raises(ValueError, match='Brightness cannot show fixed views'): fixed_views(digits_dls(n_train=8, bs=4, batch_tfms=[CropBatch(), Brightness()]))
    dls = loaders('files', photos, tmp_path, views=0)
    dls.train.after_batch.add(Brightness())
    with pytest.raises(ValueError, match='Brightness'): fixed_views(dls)
    class Other(TfmdDL): pass
    with pytest.raises(ValueError, match='Other cannot show fixed views: InMemoryDL, TfmdDL, KeptPhotosDL can'): fixed_views(DataLoaders(Other(L(range(4)), bs=2), dls.valid))
    for views in (0, 1.5, '3'):
        with pytest.raises(ValueError, match='whole number from 1 on'): fixed_views(dls, views)
