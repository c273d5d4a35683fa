"Learners on digits, and callbacks that look into a training or break it off"
import random
from contextlib import contextmanager
import torch
from fastai.vision.all import Callback, Learner, MixedPrecision, accuracy, set_seed
from focusnet_fastai.data.digits import digits_dls
from focusnet_fastai.data.memory import InMemoryLoaders
from focusnet_fastai.models import lenet5


def make_learner(dls, seed=0, model=None, **kwargs):
    "A fresh learner whose initialisation and order of images depend on `seed` alone"
    set_seed(seed)
    dls.train.rng = random.Random(seed)
    return Learner(dls, lenet5(dls.c) if model is None else model, metrics=accuracy, **kwargs)


@contextmanager
def quiet(learn):
    with learn.no_bar(), learn.no_logging(): yield learn


class InBatch(Callback):
    "Call `f(learn)` after each training loss"
    run_valid, order = False, 1
    def __init__(self, f): self.f = f
    def after_loss(self): self.f(self.learn)


class CtrlC(Callback):
    "A KeyboardInterrupt in the middle of the epoch"
    run_valid, order = False, 20
    def __init__(self, event, at=2): self.event, self.at = event, at
    def maybe(self, name):
        if name == self.event and self.learn.iter == self.at: raise KeyboardInterrupt
    def before_batch(self): self.maybe('before_batch')
    def after_pred(self): self.maybe('after_pred')
    def after_loss(self): self.maybe('after_loss')
    def after_batch(self): self.maybe('after_batch')


class CpuBf16(MixedPrecision):
    "fastai's MixedPrecision enters autocast('cuda'), which does nothing here"
    def before_fit(self):
        super().before_fit()
        self.autocast = torch.autocast('cpu', dtype=torch.bfloat16)
        self.kwargs['enabled'] = False


def small(n_train=128, bs=32, shuffle=True, n_valid=64, **kw):
    "Digits with few images for validation, too"
    d = digits_dls(n_train=n_train)
    tfms = list(d.train.after_batch.fs)
    dls = InMemoryLoaders.from_tensors((d.train_ds.x, d.train_ds.y), (d.valid_ds.x[:n_valid], d.valid_ds.y[:n_valid]), list(d.vocab), bs=bs,
                                       shuffle=shuffle, batch_tfms=tfms, **kw)
    return dls


def state(m): return {k: v.clone() for k, v in m.state_dict().items()}
def same(a, b): return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
def n_params(m): return sum(p.numel() for p in m.parameters())


def same_batches(a, b):
    "Two loaders give the same batches, in the same types"
    a, b = list(a), list(b)
    assert len(a) == len(b)
    for o, p in zip(a, b):
        assert [type(t) for t in o] == [type(t) for t in p]
        assert all(torch.equal(t, u) for t, u in zip(o, p))
