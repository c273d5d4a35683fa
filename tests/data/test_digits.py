"The handwritten digits: the real ones, a split that never moves, seeds"
import numpy as np, pytest, torch
from sklearn.datasets import load_digits
from fastai.vision.all import CrossEntropyLossFlat, Normalize, TensorCategory, TensorImageBW, set_seed
from focusnet_fastai.data.digits import digits_dls, digits_split, digits_stats


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
