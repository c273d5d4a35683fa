"The loaders: in memory against fastai's item-wise ones, crops and flips of whole batches"
import random, re
import matplotlib.pyplot as plt, numpy as np, pytest, torch
from PIL import Image
from scipy.stats import chi2_contingency, chisquare
from torch import nn
from fastai.vision.all import (Categorize, ClassificationInterpretation, CropPad, CrossEntropyLossFlat, Datasets, Flip, FlipItem, L, Learner, MixUp, PILImage, PILImageBW,
                               Pipeline, RandomCrop, TensorCategory, TensorImage, TensorImageBW, TfmdDL, Transform, accuracy, load_learner, set_seed)
from fastai.vision.all import Normalize, imagenet_stats
import fastai.vision.all as fv
from fastai.distributed import DistributedDL
from focusnet_fastai.data import archives, convert, digits, folder, memory, photos, small
from focusnet_fastai.data.digits import digits_dls
from focusnet_fastai.data.memory import CropBatch, FlipBatch, InMemoryDL, InMemoryLoaders
from focusnet_fastai.data.image_tensors import ImageTensors
from helpers import fresh
from helpers.learners import same_batches
from helpers.miniatures import quietly


def itemwise(ds, **kwargs):
    "fastai's own loader over the same images, one by one"
    dsets = Datasets(range(len(ds)), [[lambda i: ds.img_cls(ds.x[i].clone())], [lambda i: ds.vocab[int(ds.y[i])], Categorize(list(ds.vocab), sort=False)]])
    return TfmdDL(dsets, num_workers=0, **kwargs)


@pytest.fixture()
def ds():
    g = torch.Generator().manual_seed(1)
    return ImageTensors(torch.rand(23, 1, 8, 8, generator=g), torch.randint(3, (23,), generator=g), ['a', 'b', 'c'])


@pytest.fixture(scope='module')
def learn():
    set_seed(0)
    dls = digits_dls(500)
    res = Learner(dls, nn.Sequential(nn.Flatten(), nn.Linear(1024, 10)), metrics=accuracy)
    with res.no_bar(), res.no_logging(): res.fit(6, 1e-2)
    return res


# -- the loader against fastai's --------------------------------------------------------------------------------------

@pytest.mark.parametrize('kwargs', [dict(), dict(shuffle=True), dict(drop_last=True), dict(shuffle=True, drop_last=True), dict(n=10, shuffle=True),
                                    dict(bs=23), dict(bs=30), dict(bs=30, drop_last=True), dict(bs=1)], ids=str)
def test_same_batches_as_fastai(ds, kwargs):
    kwargs = {'bs': 5, **kwargs}
    dls = []
    for make in (lambda: InMemoryDL(ds, **kwargs), lambda: itemwise(ds, **kwargs)):
        random.seed(3)  # a DataLoader draws its own rng from Python's
        dls.append(make())
    for _ in range(2): same_batches(*dls)
    assert dls[0].rng.getstate() == dls[1].rng.getstate()
    assert len(dls[0]) == len(dls[1]) == len(list(dls[0]))


def test_order_and_resume(ds):
    dl = InMemoryDL(ds, bs=4, shuffle=True)
    first, state = torch.cat([x for x, _ in dl]), dl.rng.getstate()
    second = torch.cat([x for x, _ in dl])
    assert not torch.equal(first, second)
    key = lambda t: sorted(t.flatten(1).sum(1).tolist())
    assert key(first) == key(second) == key(ds.x)  # each image once an epoch
    dl.rng.setstate(state)
    assert torch.equal(torch.cat([x for x, _ in dl]), second)


def test_subclass_hooks(ds):
    class Backwards(InMemoryDL):
        def get_idxs(self): return super().get_idxs()[::-1]
    assert torch.equal(torch.cat([y for _, y in Backwards(ds, bs=4)]), ds.y.flip(0))
    rolled = InMemoryDL(ds, bs=4, shuffle=True, shuffle_fn=lambda idxs: idxs[1:] + idxs[:1])
    assert torch.equal(torch.cat([y for _, y in rolled]), ds.y.roll(-1))


def test_whole_batches_only(ds):
    "The dataset is asked for batches, never for single items"
    class Counting(ImageTensors):
        calls, singles = [], 0
        def batch(self, idxs): self.calls.append(len(idxs)); return super().batch(idxs)
        def __getitem__(self, i): Counting.singles += 1; return super().__getitem__(i)
    dl = InMemoryDL(Counting(ds.x, ds.y, ds.vocab), bs=10)
    Counting.calls.clear(); Counting.singles = 0
    list(dl)
    assert Counting.calls == [10, 10, 3] and Counting.singles == 0


def test_item_transforms_are_not_skipped(ds):
    class Invert(Transform):
        def encodes(self, x: TensorImage): return 1 - x
    same_batches(InMemoryDL(ds, bs=5, after_item=Invert()), itemwise(ds, bs=5, after_item=Invert()))
    added = InMemoryDL(ds, bs=5)
    added.after_item.add(Invert())
    assert torch.allclose(added.one_batch()[0], 1 - ds.x[:5])
    assert torch.equal(InMemoryDL(ds, bs=5, create_item=lambda i: ds[22 - i]).one_batch()[1], ds.y.flip(0)[:5])
    x, y = InMemoryDL(ds, bs=None).one_batch()
    assert x.shape == (1, 8, 8) and int(y) == int(ds.y[0])


def test_workers(ds):
    same_batches(InMemoryDL(ds, bs=5, num_workers=2), InMemoryDL(ds, bs=5))


@pytest.mark.parametrize('world', [2, 3])
@pytest.mark.parametrize('shuffle', [False, True])
def test_distributed(ds, world, shuffle):
    "Ranks see every image once, apart from the padding that makes their parts equal"
    class OneProcess(DistributedDL):
        def _broadcast(self, t, rank): return list(t)
    dl = InMemoryDL(ds, bs=4, shuffle=shuffle)
    parts, state = [], dl.rng.getstate()
    for rank in range(world):
        dl.rng.setstate(state)
        parts.append(torch.cat([x for x, _ in OneProcess(dl, rank=rank, world_size=world)]))
    assert len({len(p) for p in parts}) == 1
    seen = torch.cat(parts).flatten(1).sum(1).tolist()
    assert len(seen) == -(-23//world)*world and set(seen) == set(ds.x.flatten(1).sum(1).tolist())


def test_random_transforms_in_training_only(ds):
    dls = InMemoryLoaders.from_tensors((ds.x, ds.y), (ds.x, ds.y), ds.vocab, bs=23, shuffle=False, batch_tfms=[Flip(p=1.)])
    assert torch.allclose(dls.train.one_batch()[0], ds.x.flip(-1), atol=1e-5)
    for dl in (dls.valid, dls.test_dl(ds.x)): assert torch.allclose(dl.one_batch()[0], ds.x, atol=1e-5)


def test_bytes(ds):
    x8 = (ds.x*255).round().byte()
    dls = InMemoryLoaders.from_tensors((x8, ds.y), (x8, ds.y), ds.vocab, bs=23, shuffle=False)
    x, _ = dls.one_batch()
    assert x.dtype == torch.float32 and torch.equal(x, x8/255)
    assert dls.train_ds.x.dtype == torch.uint8 and dls.train_ds.x.data_ptr() == x8.data_ptr()  # kept as bytes, not copied
    for o in (x8[3], x8[3]/255, x8[3].long(), Image.fromarray(x8[3, 0].numpy())):
        assert torch.equal(dls.test_dl([o]).one_batch()[0], x[3:4])


def test_floats_to_bytes():
    every = torch.arange(256).byte().view(1, 1, 16, 16)
    ds = ImageTensors(every, [0], 'a')
    assert torch.equal(ds.stored(every/255), every) and torch.equal(ds.stored(every.double()/255), every)
    assert int(ds.stored(torch.full((16, 16), .999)).min()) == 255  # rounded, not cut off
    back = ImageTensors(every/255, [0], 'a')
    assert torch.equal(back.stored(every), every/255) and back.stored(every.double()/255).dtype == torch.float32


def test_colour():
    x8 = torch.randint(256, (4, 3, 6, 6), dtype=torch.uint8)
    dls = InMemoryLoaders.from_tensors((x8, [0, 1, 0, 1]), (x8, [0, 1, 0, 1]), 'ab', bs=4, shuffle=False)
    x, y = dls.one_batch()
    assert type(x) is TensorImage and type(y) is TensorCategory
    hwc = x8[2].permute(1, 2, 0).numpy()
    for o in (hwc, hwc[:, ::-1][:, ::-1], Image.fromarray(hwc), PILImage.create(hwc)): assert torch.equal(dls.test_dl([o]).one_batch()[0], x[2:3])
    dls.show_batch(); plt.close('all')


def test_drop_last_default(ds):
    loaders = lambda **kw: InMemoryLoaders.from_tensors((ds.x, ds.y), (ds.x, ds.y), ds.vocab, **kw)
    assert [len(b[1]) for b in loaders(bs=10).train] == [10, 10]
    assert [len(b[1]) for b in loaders(bs=10, shuffle=False).train] == [10, 10, 3]
    assert [len(b[1]) for b in loaders(bs=64).train] == [23]  # an epoch is never empty
    assert [len(b[1]) for b in loaders(bs=10, val_bs=23).valid] == [23]
    assert loaders(bs=10, drop_last=False).train.drop_last is False


# -- the dataset ------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('x,y,vocab,message', [
    (torch.rand(3, 8, 8), [0, 0, 0], 'ab', r'shape \(N,C,H,W\).*\(3, 8, 8\)'),
    (torch.rand(3, 2, 8, 8), [0, 0, 0], 'ab', r'1 or 3 channels.*\(3, 2, 8, 8\)'),
    (torch.rand(3, 1, 8, 8)*16, [0, 0, 0], 'ab', r'must lie in 0\.\.1'),
    (torch.full((3, 1, 8, 8), -1), [0, 0, 0], 'ab', r'must lie in 0\.\.255, but reach from -1'),
    (torch.full((3, 1, 8, 8), np.nan), [0, 0, 0], 'ab', r'must lie in 0\.\.1'),
    (torch.ones(3, 1, 8, 8, dtype=torch.bool), [0, 0, 0], 'ab', 'integers or floats, but are torch.bool'),
    (torch.rand(3, 1, 8, 8), [0, 0], 'ab', '3 images need 3 labels'),
    (torch.rand(3, 1, 8, 8), [0, 2, 0], 'ab', r'0\.\.1, but reach from 0 to 2'),
    (torch.rand(3, 1, 8, 8), [0., 1., 0.], 'ab', 'must be integers'),
    (torch.rand(3, 1, 8, 8), [0, 1, 0], 'aa', 'not all different')])
def test_refused(x, y, vocab, message):
    with pytest.raises(ValueError, match=message): ImageTensors(x, y, vocab)


def test_items(ds):
    x, y = ds[4]
    assert type(x) is TensorImageBW and type(y) is TensorCategory and torch.equal(x, ds.x[4]) and y == ds.y[4]
    assert [len(ds[o]) for o in (slice(2, 6), [1, 5, 7], np.array([0]))] == [4, 3, 1] and len(ds.items) == len(list(ds)) == 23
    assert torch.equal(ds[-1][0], ds.x[22])
    with pytest.raises(IndexError): ds[23]
    before = ds.x.clone()
    x.zero_()
    assert torch.equal(ds.x, before)
    assert len(ImageTensors(ds.x, None, ds.vocab)[0]) == 1


def test_other_loaders_refused(ds):
    with pytest.raises(TypeError, match=r'needs a dataset with `batch\(idxs\)`, but list has none'): InMemoryDL([1, 2])
    with pytest.raises(ValueError, match=r'Training images are \(\(1, 8, 8\).*validation images \(\(1, 4, 4\)'):
        InMemoryLoaders.from_tensors((ds.x, ds.y), (ds.x[..., :4, :4], ds.y), ds.vocab)


def test_test_dl(ds, tmp_path):
    dls = InMemoryLoaders.from_tensors((ds.x, ds.y), (ds.x, ds.y), ds.vocab, bs=5)
    b = dls.test_dl(ds.x, bs=23).one_batch()
    assert len(b) == 1 and torch.equal(b[0], ds.x)
    assert torch.equal(dls.test_dl(ds.x.numpy(), bs=23).one_batch()[0], ds.x)
    for items in (ds, [ds[i] for i in range(23)], L(ds.items), [(x, ds.vocab[int(i)]) for x, i in ds], [(x.numpy(), int(i)) for x, i in ds]):
        x, y = dls.test_dl(items, with_labels=True, bs=23).one_batch()
        assert torch.equal(x, ds.x) and torch.equal(y, ds.y) and type(x) is TensorImageBW and type(y) is TensorCategory
        assert len(dls.test_dl(items).one_batch()) == 1
    other = ImageTensors(ds.x, 2 - ds.y, ds.vocab[::-1])  # the same classes in another order: matched by name
    assert torch.equal(dls.test_dl(other, with_labels=True, bs=23).one_batch()[1], ds.y)
    Image.fromarray((ds.x[0, 0]*255).byte().numpy()).save(tmp_path/'a.png')
    for o in (tmp_path/'a.png', str(tmp_path/'a.png')): assert (dls.test_dl([o]).one_batch()[0][0] - ds.x[0]).abs().max() <= 1/255
    big = Image.fromarray((ds.x[0, 0]*255).byte().numpy()).resize((64, 64), Image.Resampling.NEAREST)
    assert (dls.test_dl([big]).one_batch()[0][0] - ds.x[0]).abs().max() < .3
    assert not dls.test_dl(ds.x).shuffle and not dls.test_dl(ds.x).drop_last


@pytest.mark.parametrize('items,labels,error,message', [
    ([torch.rand(1, 8, 9)], False, ValueError, r'shape \(1, 8, 8\), but this one has \(1, 8, 9\)'),
    ([np.full((8, 8), 16.)], False, ValueError, r'0\.\.1, but reach from 16 to 16'),
    (['no such file.png'], False, FileNotFoundError, 'no such file.png'),
    ([None], False, TypeError, 'array or tensor: NoneType'),
    ([torch.rand(1, 8, 8)], True, ValueError, 'pairs'),
    (torch.rand(2, 1, 8, 8), True, ValueError, 'pairs'),
    ([(torch.rand(1, 8, 8), 'd')], True, ValueError, "'d' is none of the classes.*'a', 'b', 'c'"),
    ([(torch.rand(1, 8, 8), 3)], True, ValueError, r'0\.\.2')])
def test_test_dl_refuses(ds, items, labels, error, message):
    dls = InMemoryLoaders.from_tensors((ds.x, ds.y), (ds.x, ds.y), ds.vocab)
    with pytest.raises(error, match=message): dls.test_dl(items, with_labels=labels)


# -- with a Learner ---------------------------------------------------------------------------------------------------

def test_learner_trains(learn):
    assert isinstance(learn.loss_func, CrossEntropyLossFlat)
    assert quietly(learn, learn.validate)[1] > .85


def test_shows(learn, capsys):
    learn.dls.show_batch(max_n=4)
    assert [ax.get_title() in set('0123456789') for ax in plt.gcf().axes[:4]] == [True]*4
    learn.dls.train.show_batch(max_n=4, unique=True)
    assert len({ax.get_title() for ax in plt.gcf().axes[:4]}) == 1
    quietly(learn, learn.show_results, max_n=4)
    titles = [ax.get_title() for ax in plt.gcf().axes[:4]]
    assert all(re.fullmatch(r'\d\n\d', t) for t in titles), titles
    plt.close('all')
    b = learn.dls.valid.one_batch()
    decoded = learn.dls.decode_batch(b, max_n=3)
    assert [str(o[1]) for o in decoded] == [str(int(i)) for i in b[1][:3]] and (decoded[0][0] - learn.dls.valid_ds.x[0]).abs().max() < 1e-5
    learn.summary()


def test_predict(learn, tmp_path):
    ds = learn.dls.valid_ds
    preds, targs = quietly(learn, learn.get_preds)
    assert torch.equal(targs, ds.y)
    for i in (0, 100, 796):
        x = ds.x[i]
        for o in (ds[i], ds[i][0], x, x.numpy(), x[0].numpy()):
            name, idx, probs = quietly(learn, learn.predict, o)
            assert name == learn.dls.vocab[int(preds[i].argmax())] and int(idx) == int(preds[i].argmax())
            assert torch.allclose(probs, preds[i], atol=1e-5)
    im = Image.fromarray((ds.x[0, 0]*255).round().byte().numpy())
    im.save(tmp_path/'digit.png')
    for o in (im, PILImageBW.create(im), im.convert('RGB'), tmp_path/'digit.png'):
        shown, name, _, probs = quietly(learn, learn.predict, o, with_input=True)
        assert torch.allclose(probs, preds[0], atol=.02) and (shown - ds.x[0]).abs().max() < .01


def test_get_preds_of_shuffled_and_labelled(learn):
    a, b = quietly(learn, learn.get_preds, ds_idx=0), quietly(learn, learn.get_preds, dl=learn.dls.train.new(shuffle=True, drop_last=False))
    assert torch.equal(a[1], learn.dls.train_ds.y) and torch.equal(b[1], a[1]) and torch.allclose(a[0], b[0], atol=1e-5)
    dl = learn.dls.test_dl(learn.dls.valid_ds, with_labels=True)
    assert quietly(learn, learn.validate, dl=dl) == quietly(learn, learn.validate)


def test_interpretation(learn):
    with learn.no_bar():
        interp = ClassificationInterpretation.from_learner(learn)
        cm = interp.confusion_matrix()
        assert cm.sum() == 797 and interp.most_confused(min_val=1)
        interp.plot_top_losses(4)
    plt.close('all')


@pytest.mark.slow
def test_export(learn, tmp_path):
    x = learn.dls.valid_ds.x[5]
    want = quietly(learn, learn.predict, x)
    file = tmp_path/'digits.pkl'
    learn.export(file)
    assert len(learn.dls.train_ds) == 500  # the learner keeps its data
    assert file.stat().st_size < 150_000  # 10,250 weights; the digits would be 5 MB
    np.save(tmp_path/'x.npy', x.numpy())
    code = f"""
import numpy as np, warnings; warnings.simplefilter('ignore')
from fastai.vision.all import *
learn = load_learner({str(file)!r})
with learn.no_bar(): name,idx,probs = learn.predict(np.load({str(tmp_path/'x.npy')!r}))
with learn.no_bar(): preds,_ = learn.get_preds(dl=learn.dls.test_dl(np.load({str(tmp_path/'x.npy')!r})[None]))
print(name, len(learn.dls.valid_ds), ' '.join(f'{{p:.6f}}' for p in probs), len(preds))"""
    out = fresh.python(code)
    assert out.returncode == 0, out.stderr
    name, n, *probs, n_preds = out.stdout.split()
    assert (name, n, n_preds) == (want[0], '0', '1') and np.allclose([float(p) for p in probs], want[2], atol=1e-5)


def test_to_new_and_add_tfms():
    dls = digits_dls(100).to('cpu')
    assert dls.train.device == torch.device('cpu') and dls.one_batch()[0].device.type == 'cpu'
    new = dls.train.new(bs=10, shuffle=False)
    assert isinstance(new, InMemoryDL) and len(new) == 10 and torch.equal(new.one_batch()[1], dls.train_ds.y[:10])
    empty = dls.new_empty()
    assert isinstance(empty, InMemoryLoaders) and (len(empty.train_ds), len(empty.valid_ds)) == (0, 0) and list(empty.vocab) == list(dls.vocab)
    class Zero(Transform):
        order = 100  # after Normalize
        def encodes(self, x: TensorImage): return x*0
    dls.add_tfms([Zero()], 'after_batch')
    assert dls.one_batch()[0].abs().max() == 0


def test_mixup_trains():
    set_seed(0)
    learn = Learner(digits_dls(128), nn.Sequential(nn.Flatten(), nn.Linear(1024, 10)), cbs=MixUp())
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    assert np.isfinite(learn.recorder.losses).all()


# -- crops and flips --------------------------------------------------------------------------------------------------

def places(images, pad):
    "For images cut from `coordinates` of 32x32 pixels, padded: one number 0..2*(2*pad+1)**2-1 for row, column and flip"
    a = np.stack([np.asarray(o) for o in images]).astype(int)  # (N,H,W,3)
    flip = a[:, 16, 15, 1] > a[:, 16, 16, 1]
    row, col = a[:, 16, 16, 0] - 1 - 16 + pad, np.where(flip, a[:, 16, 15, 1], a[:, 16, 16, 1]) - 1 - 16 + pad
    n = 2*pad + 1
    assert row.min() >= 0 and row.max() < n and col.min() >= 0 and col.max() < n
    return (row*n + col)*2 + flip


def coordinates():
    r, c = np.mgrid[:32, :32]
    return np.stack([r + 1, c + 1, 0*r + 9], -1).astype(np.uint8)


@pytest.mark.slow
def test_crops_and_flips_are_distributed_as_item_by_item():
    "All 9*9 places, flipped or not, equally often: against the uniform distribution and against fastai's item transforms"
    n, cells = 16200, 162
    set_seed(0)
    one = TensorImage(coordinates()).permute(2, 0, 1)
    tfms = Pipeline([CropBatch(pad=4), FlipBatch()], split_idx=0)
    ours = places(torch.cat([tfms(TensorImage(one[None].repeat(100, 1, 1, 1))) for _ in range(n//100)]).permute(0, 2, 3, 1).numpy(), 4)
    # fastai's RandomCrop never leaves out the padding of CropPad, since the padded image is larger than the crop
    items = Pipeline([CropPad(40), RandomCrop(32), FlipItem()], split_idx=0)
    im = PILImage.create(coordinates())
    theirs = places([items(im) for _ in range(n)], 4)
    a, b = (np.bincount(o, minlength=cells) for o in (ours, theirs))
    assert chisquare(a).pvalue > .001 and chi2_contingency([a, b]).pvalue > .001
    biased = np.bincount(places(torch.cat([CropBatch(pad=4)(TensorImage(one[None].repeat(n, 1, 1, 1)), split_idx=0)]).permute(0, 2, 3, 1).numpy(), 4), minlength=cells)
    assert chisquare(biased).pvalue < 1e-6  # the test would see that the flip is missing
    near = np.corrcoef(ours[:-1]//2, ours[1:]//2)[0, 1], np.corrcoef(ours[:-1] % 2, ours[1:] % 2)[0, 1]
    assert np.abs(near).max() < 4/n**.5  # neighbours in a batch are drawn independently


def test_a_crop_is_a_shifted_image_with_zeros_around():
    im = torch.randint(1, 256, (1, 3, 32, 32), dtype=torch.uint8)
    padded = torch.zeros(3, 48, 48, dtype=torch.uint8); padded[:, 8:40, 8:40] = im[0]
    windows = {padded[:, r:r+32, c:c+32].numpy().tobytes() for r in range(17) for c in range(17)}
    out = CropBatch(pad=8)(TensorImage(im.repeat(200, 1, 1, 1)), split_idx=0)
    assert type(out) is TensorImage and out.dtype == torch.uint8
    got = {o.contiguous().numpy().tobytes() for o in out}
    assert got <= windows and len(got) > 100
    smaller = CropBatch((20, 24))(TensorImage(im.repeat(50, 1, 1, 1)), split_idx=0)
    assert smaller.shape == (50, 3, 20, 24) and len({o.contiguous().numpy().tobytes() for o in smaller}) > 25
    assert torch.equal(CropBatch((20, 24))(TensorImage(im), split_idx=1), im[:, :, 6:26, 4:28])
    flipped = FlipBatch(1.)(TensorImage(im), split_idx=0)
    assert torch.equal(flipped, im.flip(-1)) and torch.equal(FlipBatch(0.)(TensorImage(im), split_idx=0), im)


def test_augmentation_in_the_loader(ds):
    "In training only, anew each epoch, the same for the same seed, as bytes and as floats, with the other transforms"
    x8 = torch.randint(256, (40, 3, 16, 16), dtype=torch.uint8)
    y = torch.arange(40) % 2
    def loaders(x, **kw): return InMemoryLoaders.from_tensors((x, y), (x, y), 'ab', bs=40, shuffle=False, batch_tfms=[CropBatch(pad=4), FlipBatch(), Normalize.from_stats(*imagenet_stats)], **kw)
    dls = loaders(x8)
    def epoch(dl, seed): torch.manual_seed(seed); return dl.one_batch()[0]
    assert torch.equal(epoch(dls.train, 0), epoch(dls.train, 0)) and not torch.equal(epoch(dls.train, 0), epoch(dls.train, 1))
    torch.manual_seed(0)
    assert not torch.equal(dls.train.one_batch()[0], dls.train.one_batch()[0])
    assert torch.allclose(epoch(dls.train, 0), epoch(loaders(x8/255).train, 0), atol=1e-5)
    mean, std = (torch.tensor(o).view(1, 3, 1, 1) for o in imagenet_stats)
    still = (x8/255 - mean)/std
    for dl in (dls.valid, dls.test_dl(x8), dls.train.new(dls.valid_ds)): assert torch.allclose(dl.one_batch()[0], still, atol=1e-5)
    assert not torch.allclose(epoch(dls.train.new(bs=20), 0), still[:20], atol=1e-2)
    assert torch.equal(dls.train_ds.x, x8)  # untouched
    shown = dls.train.decode((epoch(dls.train, 0), y))[0]
    assert shown.min() >= -1e-4 and shown.max() <= 255.001
    dls.show_batch(); plt.close('all')
    class OneProcess(DistributedDL):
        def _broadcast(self, t, rank): return list(t)
    a, b = (next(iter(OneProcess(dls.train, rank=r, world_size=2)))[0] for r in range(2))
    assert a.shape == b.shape == (20, 3, 16, 16) and not torch.allclose(a, still[:20], atol=1e-2)


def test_bad_crops():
    with pytest.raises(ValueError, match='No window of 40x40 fits into images of 32x32, padded by 3'): CropBatch(40, pad=3)(TensorImage(torch.zeros(1, 3, 32, 32)), split_idx=0)


def test_on_device(ds):
    "The data set follows its loader where that is asked for, also in loaders made from it; elsewhere it stays"
    def loaders(**kw):
        data = [ImageTensors(ds.x.clone(), ds.y.clone(), ds.vocab, i) for i in range(2)]
        return InMemoryLoaders(*(InMemoryDL(o, bs=5, device='cpu', **kw) for o in data))
    dls, stays = loaders(on_device=True), loaders()
    assert dls.train.new(bs=3).on_device and not stays.train.new(bs=3).on_device
    for o in (dls, stays): o.to('meta')
    assert dls.train_ds.x.device.type == dls.train_ds.y.device.type == dls.valid_ds.x.device.type == 'meta'
    assert stays.train_ds.x.device.type == 'cpu'


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
def test_on_a_gpu():
    default_device(None) # the tests' own is the processor
    try:
        x8, y = torch.randint(256, (64, 3, 32, 32), dtype=torch.uint8), torch.arange(64) % 2
        tfms = lambda: [CropBatch(pad=4), FlipBatch(), Normalize.from_stats(*imagenet_stats)]
        make = lambda device: InMemoryLoaders.from_tensors((x8.clone(), y), (x8.clone(), y), 'ab', bs=32, shuffle=False, batch_tfms=tfms(), on_device=True, device=device)
        a, b = make('cpu'), make('cuda')
        assert b.train_ds.x.is_cuda and b.train_ds.y.is_cuda
        for dl, dm in zip(a, b):
            torch.manual_seed(0); p = list(dl)
            torch.manual_seed(0); q = list(dm)
            for (x, t), (u, v) in zip(p, q): assert u.is_cuda and v.is_cuda and torch.allclose(x, u.cpu(), atol=1e-5) and torch.equal(t, v.cpu())
        with pytest.raises(ValueError, match='use num_workers=0'): list(b.train.new(num_workers=1))
        assert not b.to('cpu').train_ds.x.is_cuda
    finally: default_device(False)


def test_names_do_not_collide_with_fastai():
    "No public name of these rooms means something else in fastai.vision.all"
    for room in (archives, convert, digits, folder, memory, photos, small): assert not set(room.__all__) & set(dir(fv))
