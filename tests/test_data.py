"The loaders: in memory against fastai's item-wise one, the digits, Imagewoof (miniature, and the real one where installed)."
import os, random, re, subprocess, sys, time
from pathlib import Path

import numpy as np, pytest, torch
import matplotlib.pyplot as plt
from PIL import Image
from sklearn.datasets import load_digits
from torch import nn
import fastai.vision.all as fv
from fastai.vision.all import (Categorize, ClassificationInterpretation, CrossEntropyLossFlat, Datasets, Flip, L, Learner, MixUp,
                               Normalize, PILImage, PILImageBW, Pipeline, TensorCategory, TensorImage, TensorImageBW, TfmdDL, Transform,
                               URLs, accuracy, fastai_path, first, get_image_files, imagenet_stats, load_learner, set_seed, tensor,
                               untar_data)
from fastai.distributed import DistributedDL

import focusnet_fastai.data as D
from focusnet_fastai.data import (ImageTensors, InMemoryDL, InMemoryLoaders, RandomOrCentreCrop, class_files, digits_dls, digits_split,
                                  digits_stats, imagewoof_breeds, imagewoof_dls)

ROOT = Path(__file__).resolve().parent.parent
INSTALLED = fastai_path('data')/'imagewoof2-160'
needs_imagewoof = pytest.mark.skipif(not INSTALLED.is_dir(), reason="Imagewoof is not installed (fastai's untar_data(URLs.IMAGEWOOF_160) fetches it)")
BREEDS = ['Shih-Tzu', 'Rhodesian ridgeback', 'Beagle', 'English foxhound', 'Border terrier', 'Australian terrier', 'Golden retriever',
          'Old English sheepdog', 'Samoyed', 'Dingo']  # Figure 1 of the paper, indices 0..9
FOLDERS = ['n02086240', 'n02087394', 'n02088364', 'n02089973', 'n02093754', 'n02096294', 'n02099601', 'n02105641', 'n02111889', 'n02115641']


def itemwise(ds, **kwargs):
    "fastai's own loader over the same images, one by one"
    dsets = Datasets(range(len(ds)), [[lambda i: ds.img_cls(ds.x[i].clone())], [lambda i: ds.vocab[int(ds.y[i])], Categorize(list(ds.vocab), sort=False)]])
    return TfmdDL(dsets, num_workers=0, **kwargs)


def same_batches(a, b):
    a, b = list(a), list(b)
    assert len(a) == len(b)
    for o, p in zip(a, b):
        assert [type(t) for t in o] == [type(t) for t in p]
        assert all(torch.equal(t, u) for t, u in zip(o, p))


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


def quietly(learn, f, *args, **kwargs):
    with learn.no_bar(): return f(*args, **kwargs)


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


# -- digits -----------------------------------------------------------------------------------------------------------

def test_digits():
    dls = digits_dls(300)
    assert (len(dls.train_ds), len(dls.valid_ds), dls.c, dls.n_inp) == (300, 797, 10, 1)
    assert list(dls.vocab) == [str(i) for i in range(10)] and isinstance(dls.train_ds.loss_func, CrossEntropyLossFlat)
    x, y = dls.one_batch()
    assert (type(x), tuple(x.shape), x.dtype, type(y), y.dtype) == (TensorImageBW, (64, 1, 32, 32), torch.float32, TensorCategory, torch.int64)
    shown = dls.train.decode((x, y))[0]
    assert -1e-5 <= shown.min() < .01 and .9 < shown.max() <= 1 + 1e-5
    assert len(list(dls.train)) == 300//64 and sum(len(b[1]) for b in dls.valid) == 797
    assert not dls.valid.shuffle and digits_dls(100, bs=16, val_bs=797).valid.bs == 797


def test_digits_are_the_real_ones():
    real = load_digits()
    pool, valid = digits_split()
    dls = digits_dls(1000, size=8)
    assert torch.equal(dls.valid_ds.x, torch.tensor(real.images[valid], dtype=torch.float32)[:, None]/16)
    assert torch.equal(dls.valid_ds.y, torch.tensor(real.target[valid]))
    train = {(o.tobytes(), int(t)) for o, t in zip((dls.train_ds.x*16).byte().numpy(), dls.train_ds.y)}
    assert train == {(o.astype(np.uint8).tobytes(), int(t)) for o, t in zip(real.images[pool], real.target[pool])}
    assert sorted([*pool, *valid]) == list(range(1797)) and len(valid) == 797
    share = np.bincount(real.target[valid])/np.bincount(real.target)
    assert share.min() > .43 and share.max() < .455  # 797/1797 is 0.4435


def test_digits_split_never_moves():
    "Results of different versions stay comparable: the split is pinned"
    valid = digits_split()[1]
    assert valid[:8].tolist() == [2, 3, 4, 5, 6, 9, 11, 14] and valid.sum() == 733942
    assert digits_dls(5, seed=7).train_ds.y.tolist() == [1, 4, 1, 5, 8]


def test_digits_seeds():
    same, other, less = digits_dls(300, seed=0), digits_dls(300, seed=1), digits_dls(100, seed=0)
    ref = digits_dls(300)
    assert torch.equal(ref.train_ds.x, same.train_ds.x) and not torch.equal(ref.train_ds.x, other.train_ds.x)
    assert torch.equal(less.train_ds.x, ref.train_ds.x[:100])
    for o in (other, less): assert torch.equal(o.valid_ds.x, ref.valid_ds.x) and torch.equal(o.valid_ds.y, ref.valid_ds.y)
    all_of = lambda s: sorted(digits_dls(1000, seed=s).train_ds.x.flatten(1).double().pow(2).sum(1).tolist())
    assert all_of(0) == all_of(5)


def test_digits_leave_the_random_state_alone():
    "The choice of digits draws nothing from torch or numpy; the order of an epoch follows fastai's set_seed"
    torch.manual_seed(4); np.random.seed(4)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    digits_dls(100, seed=3)
    assert torch.equal(before[0], torch.get_rng_state()) and (before[1] == np.random.get_state()[1]).all()
    orders = []
    for s in (0, 0, 1):
        set_seed(s)
        orders.append(torch.cat([y for _, y in digits_dls(200).train]))
    assert torch.equal(orders[0], orders[1]) and not torch.equal(orders[0], orders[2])


def test_digits_cannot_be_spoilt():
    a = digits_dls(50)
    a.train_ds.x.zero_(); a.valid_ds.x.zero_()
    b = digits_dls(50)
    assert b.train_ds.x.max() > .9 and b.valid_ds.x.max() > .9


def test_digits_stats_and_sizes():
    x = digits_dls(1000).train_ds.x
    assert abs(x.mean() - digits_stats[0][0]) < 1e-4 and abs(x.std() - digits_stats[1][0]) < 1e-4
    xb = torch.cat([x for x, _ in digits_dls(1000, drop_last=False).train])
    assert abs(xb.mean()) < 1e-3 and abs(xb.std() - 1) < 1e-3
    assert digits_dls(10, size=28).one_batch()[0].shape == (10, 1, 28, 28)
    assert not list(f for f in digits_dls(10, batch_tfms=[]).after_batch.fs if isinstance(f, Normalize))


@pytest.mark.parametrize('kwargs,message', [(dict(n_train=1001), r'n_train must lie in 1\.\.1000, but is 1001'), (dict(n_train=0), 'but is 0'),
                                            (dict(size=7), 'at least 8, but is 7')])
def test_digits_refused(kwargs, message):
    with pytest.raises(ValueError, match=message): digits_dls(**kwargs)


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
    out = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, env={**os.environ, 'PYTHONPATH': str(ROOT)})
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


def test_faster_than_item_by_item():
    dls = digits_dls(1000)
    dl = itemwise(dls.train_ds, bs=64, shuffle=True, drop_last=True, after_batch=Normalize.from_stats(*digits_stats))
    def seconds(dl):
        start = time.perf_counter()
        for _ in dl: pass
        return time.perf_counter() - start
    whole, single = (min(seconds(o) for _ in range(5)) for o in (dls.train, dl))
    assert single > 4*whole, (single, whole)  # about 10 times; the machine may be busy


# -- Imagewoof --------------------------------------------------------------------------------------------------------

def miniature(path, n=(3, 2), size=(200, 160)):
    "Generated JPEGs in the layout of the true archive"
    rng = np.random.RandomState(0)
    for s, k in zip(('train', 'val'), n):
        for c, folder in enumerate(FOLDERS):
            (path/s/folder).mkdir(parents=True)
            for i in range(k):
                colour = rng.randint(60, 200, 3)
                im = np.clip(colour + rng.randint(-20, 20, (size[1], size[0], 3)), 0, 255).astype(np.uint8)
                Image.fromarray(im).save(path/s/folder/f'ILSVRC2012_val_{c:04}{i:04}.JPEG', quality=90)
    return path


@pytest.fixture(scope='module')
def woof(tmp_path_factory): return miniature(tmp_path_factory.mktemp('data')/'imagewoof2-160')


def offline(home):
    "An environment in which every download is refused by a real, closed port, and fastai's folder is `home`"
    proxy = {k: 'http://127.0.0.1:9' for k in ('http_proxy', 'https_proxy', 'HTTP_PROXY', 'HTTPS_PROXY')}
    env = {k: v for k, v in os.environ.items() if k.lower() != 'no_proxy'}
    return {**env, **proxy, 'FASTAI_HOME': str(home), 'PYTHONPATH': str(ROOT)}


def test_breeds():
    assert list(imagewoof_breeds) == FOLDERS and list(imagewoof_breeds.values()) == BREEDS


def test_imagewoof_miniature(woof):
    dls = imagewoof_dls(size=64, bs=10, path=woof, num_workers=0)
    assert (len(dls.train_ds), len(dls.valid_ds), dls.c) == (30, 20, 10) and list(dls.vocab) == BREEDS
    x, y = dls.one_batch()
    assert (type(x), tuple(x.shape), type(y)) == (TensorImage, (10, 3, 64, 64), TensorCategory)
    for ds in (dls.train_ds, dls.valid_ds):
        assert all(FOLDERS[int(y)] == Path(f).parent.name for f, (_, y) in zip(ds.items, ds))
    assert {Path(f).parent.parent.name for f in dls.train_ds.items} == {'train'} and {Path(f).parent.parent.name for f in dls.valid_ds.items} == {'val'}
    assert dls.train_ds.items == sorted(dls.train_ds.items)
    assert isinstance(Learner(dls, nn.Linear(1, 1)).loss_func, CrossEntropyLossFlat)
    dls.show_batch(); plt.close('all')
    norm = first(f for f in dls.after_batch.fs if isinstance(f, Normalize))
    assert np.allclose(norm.mean.flatten(), imagenet_stats[0]) and np.allclose(norm.std.flatten(), imagenet_stats[1])


def test_imagewoof_passes_arguments_on(woof):
    dls = imagewoof_dls(size=32, bs=4, path=str(woof), num_workers=0, val_bs=7, shuffle=False, drop_last=False, device='cpu')
    assert (dls.train.bs, dls.valid.bs, dls.train.shuffle, dls.train.drop_last, dls.train.fake_l.num_workers) == (4, 7, False, False, 0)
    assert torch.equal(dls.one_batch()[1], tensor([0, 0, 0, 1])) and str(dls.device) == 'cpu'
    assert imagewoof_dls(size=(32, 48), bs=4, path=woof, num_workers=0).one_batch()[0].shape[-2:] == (32, 48)
    crop = first(f for f in imagewoof_dls(path=woof, min_scale=.5, num_workers=0).after_item.fs if isinstance(f, RandomOrCentreCrop))
    assert crop.min_scale == .5


def test_imagewoof_with_workers(woof):
    dls = imagewoof_dls(size=32, bs=10, path=woof, num_workers=2)
    assert sorted(torch.cat([y for _, y in dls.train]).tolist()) == sorted([*range(10)]*3)


def test_training_is_random_and_validation_is_not(woof):
    dls = imagewoof_dls(size=32, bs=20, path=woof, num_workers=0, shuffle=False)
    assert not torch.equal(dls.train.one_batch()[0], dls.train.one_batch()[0])
    assert torch.equal(dls.valid.one_batch()[0], dls.valid.one_batch()[0])


def test_flips_and_crops(woof):
    "Half of the training pictures are mirrored; crops cover min_scale..1 of the area and move about"
    ramp = np.tile(np.arange(160, dtype=np.uint8)[None, :, None], (120, 1, 3))
    im = PILImage.create(ramp)
    pipe, still = (Pipeline(dl.after_item.fs, split_idx=i) for i, dl in enumerate(imagewoof_dls(size=32, path=woof, num_workers=0)))
    crop = first(f for f in pipe.fs if isinstance(f, RandomOrCentreCrop))
    random.seed(0)
    flips, areas, lefts = [], [], []
    for _ in range(400):
        a = pipe(im)[0].float()
        flips.append(bool(a[:, 0].mean() > a[:, -1].mean())); areas.append(np.prod(crop.cp_size)/(160*120)); lefts.append(crop.tl[0])
    assert .42 < np.mean(flips) < .58
    assert .34 < min(areas) < .4 and max(areas) > .9 and len(set(lefts)) > 30
    assert all(torch.equal(still(im), still(im)) and still(im)[0, 0, 0] < still(im)[0, 0, -1] for _ in range(20))


@pytest.mark.parametrize('wh,size', [((200, 160), 128), ((160, 333), 128), ((160, 160), 64), ((500, 375), 224), ((90, 70), 128), ((200, 160), (64, 96))])
def test_centre_crop(wh, size):
    "As torchvision's Resize to 256/224 of the size on the shorter side, then CenterCrop, and no proportions changed"
    import torchvision.transforms as T
    h, w = (size, size) if isinstance(size, int) else size
    yy, xx = np.mgrid[:wh[1], :wh[0]]
    im = PILImage.create(np.stack([xx*255/wh[0], yy*255/wh[1], 0*xx], -1).astype(np.uint8))
    crop = RandomOrCentreCrop(size)
    ours = np.asarray(crop(im, split_idx=1)).astype(float)
    assert ours.shape == (h, w, 3)
    cw, ch = crop.cp_size
    assert abs(cw/ch - w/h) < .03 and abs(crop.tl[0]*2 + cw - wh[0]) <= 1 and abs(crop.tl[1]*2 + ch - wh[1]) <= 1
    if h == w:
        theirs = np.asarray(T.Compose([T.Resize(round(size*256/224)), T.CenterCrop(size)])(Image.fromarray(np.asarray(im)))).astype(float)
        assert np.abs(ours - theirs).max() < 6 and np.abs(ours - theirs).mean() < 1.5


def test_imagewoof_export(woof, tmp_path):
    learn = Learner(imagewoof_dls(size=32, bs=10, path=woof, num_workers=0), nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 10)))
    file = get_image_files(woof/'val')[3]
    want = quietly(learn, learn.predict, file)
    assert want[0] in BREEDS
    learn.export(tmp_path/'dogs.pkl')
    again = load_learner(tmp_path/'dogs.pkl')
    got = quietly(again, again.predict, PILImage.create(file))
    assert got[0] == want[0] and torch.allclose(got[2], want[2])


def test_imagewoof_wrong_folders(tmp_path):
    with pytest.raises(FileNotFoundError, match='There is no folder .*nowhere'): imagewoof_dls(path=tmp_path/'nowhere')
    path = miniature(tmp_path/'woof', n=(1, 1), size=(20, 16))
    files = class_files(path, imagewoof_breeds)
    assert [len(o) for o in files] == [10, 10]
    (path/'train'/'.ipynb_checkpoints').mkdir()
    assert class_files(path, imagewoof_breeds) == files
    (path/'val'/'n00000000').mkdir()
    with pytest.raises(ValueError, match='Unknown class folder .*woof.val.n00000000'): imagewoof_dls(path=path)
    (path/'val'/'n00000000').rmdir()
    image = first(get_image_files(path/'val'/FOLDERS[3]))
    image.rename(image.with_suffix('.txt'))
    with pytest.raises(ValueError, match=f"woof.val.{FOLDERS[3]} of the class 'English foxhound' holds no images"): imagewoof_dls(path=path)
    image.with_suffix('.txt').unlink(); image.parent.rmdir()
    with pytest.raises(FileNotFoundError, match=f"There is no folder .*woof.val.{FOLDERS[3]} for the class 'English foxhound'"): imagewoof_dls(path=path)
    (path/'val').rename(path/'valid')
    with pytest.raises(FileNotFoundError, match='There is no folder .*woof.val$'): imagewoof_dls(path=path)


def test_without_a_network(tmp_path):
    "An installed set is found without a download; a missing one says what to put where"
    home = miniature(tmp_path/'data'/'imagewoof2-160', n=(1, 1), size=(20, 16))
    code = f"""
from focusnet_fastai.data import *
import pathlib
print(len(imagewoof_dls(num_workers=0).valid_ds), flush=True)
pathlib.Path({str(home)!r}).rename({str(tmp_path/'elsewhere')!r})
imagewoof_dls(num_workers=0)"""
    out = subprocess.run([sys.executable, '-W', 'ignore', '-c', code], capture_output=True, text=True, env=offline(tmp_path))
    assert out.stdout.split()[0] == '10' and out.returncode == 1, out.stderr
    last = out.stderr.strip().splitlines()[-1]
    assert 'Could not fetch https://' in last and f"save the archive as {tmp_path/'archive'/'imagewoof2-160.tgz'}" in last, last


@needs_imagewoof
def test_imagewoof_real():
    "All photographs, on two short batches"
    assert untar_data(URLs.IMAGEWOOF_160) == INSTALLED
    dls = imagewoof_dls(bs=16, num_workers=0)
    assert (len(dls.train_ds), len(dls.valid_ds)) == (9025, 3929) and list(dls.vocab) == BREEDS
    counts = np.bincount([FOLDERS.index(Path(f).parent.name) for f in dls.train_ds.items])
    assert counts[3] == 580 and counts.min() == 580  # English foxhound has the fewest
    for dl in dls:
        x, y = dl.one_batch()
        assert x.shape == (16, 3, 128, 128) and abs(x.mean()) < 1 and .5 < x.std() < 2
    learn = Learner(dls, nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 10)))
    name, idx, probs = quietly(learn, learn.predict, dls.valid_ds.items[0])
    assert name == BREEDS[int(idx)] and abs(probs.sum() - 1) < 1e-5


# -- names ------------------------------------------------------------------------------------------------------------

def test_names_do_not_collide_with_fastai():
    assert not set(D.__all__) & set(dir(fv))
