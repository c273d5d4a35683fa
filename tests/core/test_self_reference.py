"A network that is its own reference: what it is given back, against loops written here; which images are in a batch; a ramp, a kill, two processes."
import random
from copy import deepcopy
from pathlib import Path

import numpy as np, pytest, torch, torch.nn.functional as F
from fastai.vision.all import (Callback, CrossEntropyLossFlat, DataLoaders, Learner, PartialDL, SGD, TfmdDL, WeightedDL, accuracy, noop, set_seed)
from fastai.callback.mixup import CutMix, MixUp
from torch import nn

from helpers import fresh, memory_workers
from helpers.learners import CtrlC, InBatch, make_learner, quiet, same, small, state
from helpers.two_processes import in_two_processes
from focusnet_fastai.data.digits import digits_dls
from focusnet_fastai.data.memory import InMemoryLoaders
from focusnet_fastai.focusnet import FocusNetCallback
from focusnet_fastai.lab.recipes import one_cycle
from focusnet_fastai.lab.runs import run
from focusnet_fastai.margins import margins
from focusnet_fastai.methods.distil import KD
from focusnet_fastai.methods.views import CSKD, DDGSD, SLA
from focusnet_fastai.models import lenet5, thin_resnet
from focusnet_fastai.remembered import store_bytes
from focusnet_fastai.self_memory import Memory, MovingAverage
from focusnet_fastai.self_reference import ClassMemory


def mlp(): return nn.Sequential(nn.Flatten(), nn.Linear(1024, 24), nn.ReLU(), nn.Linear(24, 10))


def learner(dls, net=None, **kw):
    set_seed(1)
    net = mlp() if net is None else net
    dls.train.rng = random.Random(1)
    return Learner(dls, net, loss_func=CrossEntropyLossFlat(), metrics=accuracy, **kw)


def fit(learn, n=1, lr=1e-2, **kw):
    with quiet(learn): learn.fit(n, lr, **kw)
    return learn


# --- the numbers: loops without fastai ------------------------------------------------------------------------------------------

class OfImages:
    "Logits of an epoch ago, found by the bytes of the image"
    def __init__(self): self.said = {}
    def keys(self, x): return [o.numpy().tobytes() for o in x]
    def ask(self, net, x, y):
        known = torch.tensor([float(k in self.said) for k in self.keys(x)])
        return torch.stack([self.said.get(k, torch.zeros(10)) for k in self.keys(x)]), known
    def hear(self, net, x, y, z): self.said.update(zip(self.keys(x), z.detach().half().float()))
    def step(self, net): pass
    def end(self): pass


class OfClasses:
    "Mean probabilities of the last epoch, of all images of a class or of the right answers"
    def __init__(self, right): self.right, self.means, self.heard = right, {}, {c: [] for c in range(10)}
    def ask(self, net, x, y):
        p = torch.stack([self.means.get(c, torch.full((10,), .1)) for c in y.tolist()])
        return p.log(), torch.tensor([float(c in self.means) for c in y.tolist()])
    def hear(self, net, x, y, z):
        for c, o in zip(y.tolist(), z.detach().softmax(1)):
            if not self.right or o.argmax() == c: self.heard[c].append(o)
    def step(self, net): pass
    def end(self):
        self.means.update({c: torch.stack(o).mean(0) for c, o in self.heard.items() if o})
        self.heard = {c: [] for c in range(10)}


class OfAverage:
    "A running average of the weights, which begins with the first step"
    def __init__(self, decay): self.decay, self.net, self.steps = decay, None, 0
    def ask(self, net, x, y):
        if self.net is None: self.net = deepcopy(net)
        with torch.no_grad(): return self.net(x), torch.ones(len(x))
    def hear(self, net, x, y, z): pass
    def step(self, net):
        self.steps += 1
        d = self.decay if self.steps > 1 else 0.
        with torch.no_grad():
            for a, b in zip(self.net.parameters(), net.parameters()): a.copy_(d*a + (1-d)*b)
    def end(self): pass


def loop(dls, reference, loss, epochs, lr):
    "Plain gradient descent on the mean of `loss(z, zb, known, y)`"
    set_seed(1)
    net = mlp()
    dls.train.rng = random.Random(1)
    for _ in range(epochs):
        for x, y in dls.train:
            x, y = x.as_subclass(torch.Tensor), y.as_subclass(torch.Tensor)
            zb, known = reference.ask(net, x, y)
            z = net(x)
            grads = torch.autograd.grad(loss(z, zb, known, y).mean(), list(net.parameters()))
            with torch.no_grad():
                for p, g in zip(net.parameters(), grads): p -= lr*g
            reference.hear(net, x, y, z)
            reference.step(net)
        reference.end()
    return net


def focus_loss(z, zb, known, y):
    "Equations 4-12 with soft labels and beta .3"
    p, pb = z.softmax(1), zb.softmax(1)
    cls = F.cross_entropy(z + known[:, None]*(p-pb), y, reduction='none')
    return cls + known*-(pb*p.log()).sum(1) + .3*(p*p.log()).sum(1)


def kd_loss(z, zb, known, y):
    "Half cross-entropy, half divergence at T = 2; where nothing is known, cross-entropy alone"
    ce = F.cross_entropy(z, y, reduction='none')
    kl = 4*F.kl_div((z/2).log_softmax(1), (zb/2).softmax(1), reduction='none').sum(1)
    return .5*ce + .5*(known*kl + (1-known)*ce)


kinds = dict(memory=(Memory, OfImages), classes=(ClassMemory, lambda: OfClasses(False)), right=(lambda: ClassMemory(right=True), lambda: OfClasses(True)),
             average=(lambda: MovingAverage(.8), lambda: OfAverage(.8)))


@pytest.mark.parametrize('method', ['focus', 'kd'])
@pytest.mark.parametrize('kind', kinds)
def test_against_a_loop(kind, method):
    "Three epochs of a small network end at the same weights"
    make, other = kinds[kind]
    cb, loss = (FocusNetCallback(make(), beta=.3, rule='soft'), focus_loss) if method == 'focus' else (KD(make(), alpha=.5, T=2.), kd_loss)
    dls = small(n_train=96, bs=16)
    learn = fit(learner(dls, opt_func=SGD), 3, .05, cbs=cb)
    want = loop(small(n_train=96, bs=16), other(), loss, 3, .05)
    plain = loop(small(n_train=96, bs=16), other(), lambda z, zb, known, y: F.cross_entropy(z, y, reduction='none'), 3, .05)
    a, b, c = [torch.cat([p.detach().flatten() for p in net.parameters()]) for net in (learn.model, want, plain)]
    assert torch.allclose(a, b, atol=2e-5) and (a-c).abs().max() > 1e-3


def test_average_of_batch_norm():
    "Its statistics are averaged like the weights, and it is asked in eval mode; every second epoch about all images, as they are in validation"
    dls = small(n_train=64, bs=16, drop_last=False)
    learn, average, seen = learner(dls, thin_resnet(10, 1)), MovingAverage(.5, every=2), []
    def look(l): seen.append(next(m for m in l.model.modules() if isinstance(m, nn.BatchNorm2d)).running_mean.clone())
    class Statistics(Callback):
        run_valid = False
        def after_batch(self): look(self.learn)
    fit(learn, 4, cbs=[FocusNetCallback(average), Statistics()])
    want = seen[0]
    for o in seen[1:]: want = .5*want + .5*o
    got = next(m for m in average.average.modules() if isinstance(m, nn.BatchNorm2d)).running_mean
    assert torch.allclose(got, want, atol=1e-6)
    x = torch.cat([b[0] for b in dls.train.new(shuffle=False)])
    with torch.no_grad(): want = average.average.module(x)
    assert torch.allclose(average.store.get(list(range(64))), want, atol=.02) and average.known is None


def test_margins():
    "The mean over epochs, against what the network says when each batch comes"
    memory, said = Memory(), {}
    dls = small(n_train=64, bs=16)
    def look(l):
        z = l.pred.detach()
        for i, m in zip(dls.train.last_order[l.iter*16:][:16], [z[i, y] - z[i][torch.arange(10) != y].max() for i, y in enumerate(l.y.tolist())]): said.setdefault(i, []).append(m.item())
    fit(learner(dls), 3, cbs=[FocusNetCallback(memory), InBatch(look)])
    assert memory.seen.tolist() == [3]*64
    assert memory.margin.tolist() == pytest.approx([sum(said[i])/3 for i in range(64)], abs=1e-4)
    assert margins(torch.tensor([[1., 4., 2.]]), torch.tensor([[0., 0., 1.]])).tolist() == [-2.]


def test_k_strongest_and_sizes():
    "The arithmetic for ImageNet: 2.6 GB whole; ten logits an image are 51 MB with their classes, and 55 MB with the rest and what is known"
    n = 1_281_167
    assert round(store_bytes(n, 1000)/1e9, 1) == 2.6 and n*10*(2+2) == 51_246_680 and store_bytes(n, 1000, 10) == 51_246_680 + 3*n == 55_090_181
    memory = Memory(k=2)
    fit(learner(small(n_train=64, bs=16)), 2, cbs=FocusNetCallback(memory))
    z = memory.store.get(list(range(64)))
    assert {len(set(o)) for o in z.tolist()} == {3} and memory.store.parts['classes'].dtype == torch.int16


# --- which images are these? --------------------------------------------------------------------------------------------------

def numbered(n=40, bs=8, **kw):
    "Digits whose first pixel is their number"
    ds = digits_dls(n_train=n, bs=bs, device='cpu').train_ds
    x = ds.x.clone()
    x[:, 0, 0, 0] = torch.arange(n)/255
    return InMemoryLoaders.from_tensors((x, ds.y), (x[:8], ds.y[:8]), list(ds.vocab), bs=bs, device='cpu', **kw)


def numbers(x): return (x[:, 0, 0, 0]*255).round().long()


class Look(Callback):
    "Compares the rows of the reference with the numbers in the images"
    run_valid, order = False, 1
    def before_fit(self): self.batches = 0
    def after_loss(self):
        cb = self.learn.cbs[[hasattr(o, 'baseline_logits') for o in self.learn.cbs].index(True)]
        n = len(self.learn.pred)
        assert cb.frozen.rows[:n].tolist() == numbers(self.learn.xb[0])[:n].tolist()
        assert cb.baseline_logits.shape == self.learn.pred.shape
        self.batches += 1


@pytest.mark.parametrize('kind', ['shuffled', 'in order', 'odd last batch', 'weighted', 'partial', 'items'])
def test_loaders(kind):
    dls = numbered(n=37 if kind == 'odd last batch' else 40, shuffle=kind != 'in order', drop_last=False)
    if kind == 'weighted': dls.loaders[0] = dls.train.new(cls=WeightedDL, wgts=np.arange(40)+1., shuffle=True)
    if kind == 'partial': dls.loaders[0] = dls.train.new(cls=PartialDL, partial_n=20, shuffle=True)
    if kind == 'items':
        dls.loaders[0] = TfmdDL([(x, y) for x, y in zip(dls.train_ds.x, dls.train_ds.y)], bs=8, shuffle=True, num_workers=0)
        dls.c = 10
    memory, look = Memory(), Look()
    fit(learner(dls), 3, cbs=[FocusNetCallback(memory), look])
    assert look.batches == 3*len(dls.train)
    if kind == 'weighted': assert memory.seen.sum() == 3*40 and memory.seen.max() > 3
    elif kind == 'partial': assert memory.seen.sum() == 3*20 and memory.store.filled.sum() == (memory.seen > 0).sum() < 40
    else: assert (memory.seen == 3).all()


@pytest.mark.parametrize('cls', [CSKD, DDGSD, SLA])
def test_groups(cls):
    "Partners, two views, four rotations: the first block are the images"
    class Own(cls):
        needs_baseline = True
        def __init__(self):
            super().__init__()
            self.baseline = Memory()
    learn, look = Own.wrap(learner(numbered(), thin_resnet(10, 1))), Look()
    memory = learn.method.baseline
    fit(learn, 2, cbs=look)
    assert look.batches == 2*5 and memory.seen.tolist() == [2]*40 and memory.store.filled.all()


@pytest.mark.parametrize('mix', [MixUp, CutMix])
def test_mixed_images(mix):
    "Each image of a mixture against what is known of it, blended as their labels are"
    dls, rows, terms = numbered(), {}, []
    def look(l):
        cb, m = l.focus_net, l.mix_up if mix is MixUp else l.cut_mix
        mine, theirs = [dls.train_ds.y[o] for o in (cb.frozen.rows, cb.frozen.rows[cb.mixed_in])]
        assert l.y.tolist() == mine.tolist() and m.yb1[0].tolist() == theirs.tolist()
        if mix is MixUp:
            n = cb.frozen.rows.float()
            assert torch.allclose(l.xb[0][:, 0, 0, 0]*255, m.lam*n + (1-m.lam)*n[cb.mixed_in], atol=1e-3)
        zb, known, z = cb.baseline_logits, cb.trust, l.pred
        lam = m.lam.expand(len(z))
        want = lam*focus_loss(z, zb, known, mine) + (1-lam)*focus_loss(z, zb[cb.mixed_in], known[cb.mixed_in], theirs)
        terms.append((l.loss_grad.item(), want.mean().item(), known.mean().item()))
    memory = Memory()
    fit(learner(dls), 3, cbs=[FocusNetCallback(memory, beta=.3, rule='soft'), mix(), InBatch(look)])
    assert len(terms) == 15 and all(a == pytest.approx(b, abs=1e-5) for a, b, _ in terms)
    assert terms[0][2] == 0 and terms[-1][2] > .5 and memory.seen.sum() == 0


def test_mixed_classes():
    "The table counts a mixture for both classes"
    classes = ClassMemory()
    learn, got = learner(small(n_train=64, bs=16)), []
    def look(l):
        m, p = l.mix_up, l.pred.detach().softmax(1)
        for i in range(len(p)): got.append((l.y[i].item(), m.yb1[0][i].item(), m.lam[i].item(), p[i]))
    fit(learn, 1, cbs=[FocusNetCallback(classes), MixUp(), InBatch(look)])
    for c in range(10):
        w = torch.tensor([lam*(a == c) + (1-lam)*(b == c) for a, b, lam, _ in got])
        assert torch.allclose(classes.table[c], (w[:, None]*torch.stack([o[3] for o in got])).sum(0)/w.sum(), atol=1e-5)


def test_soft_targets():
    "Probabilities as labels: rows of the table are blended"
    items = [(x, F.one_hot(y, 10)*.8 + .02) for x, y in zip(numbered().train_ds.x, numbered().train_ds.y)]
    dls = DataLoaders(TfmdDL(items, bs=8, shuffle=True, num_workers=0), TfmdDL(items[:8], bs=8, num_workers=0))
    dls.c = 10
    learn, seen = Learner(dls, mlp(), loss_func=nn.CrossEntropyLoss()), []
    def look(l): seen.append((l.focus_net.baseline_logits.softmax(1) - (l.y@l.focus_net.frozen.table)).abs().max().item() if l.epoch else 0.)
    fit(learn, 2, cbs=[FocusNetCallback(ClassMemory()), InBatch(look)])
    assert max(seen) < 1e-5


@pytest.mark.parametrize('make, message', [
    (lambda d: DataLoaders(torch.utils.data.DataLoader([(x, y) for x, y in zip(d.train_ds.x, d.train_ds.y)], batch_size=8), d.valid), 'must be one of fastai'),
    (lambda d: DataLoaders(TfmdDL([d.train.one_batch()]*3, bs=None), d.valid), 'dataset with indices')])
def test_loaders_without_numbers(make, message):
    "Refused before the first step; a memory of classes needs none"
    dls = make(numbered())
    dls.c = 10
    learn = Learner(dls, mlp(), loss_func=CrossEntropyLossFlat())
    with pytest.raises((TypeError, ValueError), match=message): fit(learn, cbs=FocusNetCallback(Memory()))
    fit(learn, 2, cbs=FocusNetCallback(ClassMemory()))


def test_skipped_images():
    from fastai.data.load import SkipItemException
    class Some(list):
        def __getitem__(self, i):
            if i == 3: raise SkipItemException()
            return super().__getitem__(i)
    d = numbered()
    dls = DataLoaders(TfmdDL(Some((x, y) for x, y in zip(d.train_ds.x, d.train_ds.y)), bs=16, num_workers=0), d.valid)
    dls.c = 10
    with pytest.raises(ValueError, match='Batch 2 has 7 images, but the loader drew 8: where images are skipped'): fit(learner(dls), cbs=FocusNetCallback(Memory()))


def test_blended_labels_are_refused():
    items = [(x, F.one_hot(y, 10).float()) for x, y in zip(numbered().train_ds.x, numbered().train_ds.y)]
    dls = DataLoaders(TfmdDL(items, bs=8, num_workers=0), TfmdDL(items[:8], bs=8, num_workers=0))
    dls.c = 10
    learn = Learner(dls, mlp(), loss_func=nn.CrossEntropyLoss())
    with pytest.raises(ValueError, match='Memory must know which two images are mixed, and MixUp blends'): fit(learn, cbs=[FocusNetCallback(Memory()), MixUp()])


def test_someone_iterates_the_loader_in_between():
    "The order of the epoch is that of its batches"
    class Peek(Callback):
        run_valid = False
        def after_batch(self):
            if self.iter == 1: list(self.dls.train)
    fit(learner(numbered()), 2, cbs=[FocusNetCallback(Memory()), Look(), Peek()])


# --- time -----------------------------------------------------------------------------------------------------------------------

def test_ramp():
    "By the part of the training that is over; images that were never seen are not trusted at any time"
    trusts, terms = [], []
    def look(l):
        cb = l.focus_net
        trusts.append(1. if cb.trust is None else cb.trust.mean().item())
        terms.append(cb.term_values[1].item())
    fit(learner(small(n_train=64, bs=16)), 5, cbs=[FocusNetCallback(MovingAverage(start=.2, ramp=.4)), InBatch(look)])
    assert trusts == pytest.approx([min(max(i/20-.2, 0)/.4, 1) for i in range(20)], abs=1e-5)
    assert [t == 0 for t in terms] == [w == 0 for w in trusts]
    trusts.clear()
    fit(learner(small(n_train=64, bs=16)), 2, cbs=[FocusNetCallback(Memory()), InBatch(look)])
    assert trusts == [0]*4 + [1]*4
    with pytest.raises(ValueError, match='`ramp` must lie in 0..1'): ClassMemory(ramp=5)


def test_before_the_start_it_is_cross_entropy_minus_entropy():
    from focusnet_fastai.methods.regularise import ConfidencePenalty
    nets = [fit(learner(small(n_train=64, bs=16), opt_func=SGD), 2, cbs=cb).model for cb in (FocusNetCallback(Memory(start=.99), beta=.3), ConfidencePenalty(.3))]
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(nets[0].parameters(), nets[1].parameters()))


@pytest.mark.slow
@pytest.mark.parametrize('method, settings', [('focus_class', {}), ('focus_memory', dict(start=0., k=3)), ('focus_ema', dict(every=1, decay=.5)), ('focus_ema', dict(start=.3))])
def test_killed_and_continued(tmp_path, method, settings):
    "Bit for bit"
    def recipe(seed=0, epochs=3): return one_cycle(digits_dls(n_train=48, seed=seed, bs=16), thin_resnet(10, 1), epochs, .02, n_valid=20)
    def cut(line):
        if line.startswith('epoch 2/3'): raise KeyboardInterrupt
    whole = run(recipe, method, 0, tmp_path/'whole', log=noop, **settings)
    with pytest.raises(KeyboardInterrupt): run(recipe, method, 0, tmp_path/'cut', log=cut, **settings)
    again = run(recipe, method, 0, tmp_path/'cut', log=noop, **settings)
    assert again['weights'] == whole['weights'] and again['last'] == whole['last'] and whole['last']['attention'] > 0


def test_ctrl_c_and_again():
    "A second training knows nothing of the first; it is not told that the baseline guesses"
    memory = Memory()
    learn, seen = learner(small(n_train=64, bs=16)), []
    with pytest.raises(KeyboardInterrupt): fit(learn, 2, cbs=[FocusNetCallback(memory), CtrlC('after_loss')])
    assert not learn._grab_cbs(FocusNetCallback)
    import warnings
    with warnings.catch_warnings():
        warnings.simplefilter('error', UserWarning)
        fit(learn, 2, cbs=[FocusNetCallback(memory), InBatch(lambda l: seen.append(l.focus_net.trust.sum().item()))])
    assert seen == [0]*4 + [16]*4 and memory.seen.tolist() == [2]*64 and memory.learn is None


def test_classes_keep_what_they_had():
    "A class without a right answer in an epoch keeps its row; one without any is not trusted"
    classes = ClassMemory(right=True)
    classes.n_classes, classes.place = 3, torch.device('cpu')
    classes.begin()
    classes.observe(torch.eye(3)*5, torch.tensor([0, 1, 0]), None)
    classes.end_epoch(0)
    row = classes.table[1].clone()
    assert classes.heard.tolist() == [1, 1, 0] and row.argmax() == 1
    classes.observe(torch.eye(3)[[0, 0]]*5, torch.tensor([0, 1]), None)
    classes.end_epoch(1)
    assert torch.equal(classes.table[1], row) and classes.heard.tolist() == [1, 1, 0]


# --- processes --------------------------------------------------------------------------------------------------------------------

@pytest.mark.slow
def test_worker_processes(tmp_path):
    "Started in every way: the same memory as without workers"
    out = fresh.Fresh([memory_workers.__file__, 'fork', 'spawn', 'forkserver'], script=memory_workers.__file__).wait()
    assert out.stdout.split() == ['fork', 'spawn', 'forkserver'], out.stdout + out.stderr[-3000:]


@pytest.mark.slow
def test_two_processes(tmp_path):
    "Each image in the row of its number; at the end of an epoch both know what either has heard"
    body = '''
from focusnet_fastai.self_reference import ClassMemory
from focusnet_fastai.self_memory import Memory, MovingAverage
from focusnet_fastai.data.memory import InMemoryLoaders
connect()
set_seed(rank)
ds = digits_dls(n_train=41, bs=8, device='cpu').train_ds
x = ds.x.clone()
x[:,0,0,0] = torch.arange(41)/255
dls = InMemoryLoaders.from_tensors((x, ds.y), (x[:8], ds.y[:8]), list(ds.vocab), bs=4, drop_last=False, device='cpu')
right = []
class Look(Callback):
    run_valid,order = False,1
    def after_loss(self):
        m = self.learn.focus_net
        want = (self.xb[0][:,0,0,0]*255).round().long().tolist()
        right.append(m.frozen.rows.tolist()==want if hasattr(m.frozen, 'rows') else True)
        if self.epoch and hasattr(m.frozen, 'rows'): right.append(bool(m.trust.all()))
def fit(reference):
    learn = Learner(dls, lenet5(10), metrics=accuracy)
    with on_all_devices(learn), learn.no_bar(), learn.no_logging(): learn.fit(3, 3e-3, cbs=[FocusNetCallback(reference), Look()])
    return reference
memory,few,classes = fit(Memory()),fit(Memory(k=3)),fit(ClassMemory())
fit(MovingAverage(every=1))
def say(ok): print(f"{'OK' if ok else 'NO'} {rank}", flush=True)
say(all(right) and len(right)>60)
same = [same_in_both(o) for o in (memory.store.get(list(range(41))), few.store.get(list(range(41))), memory.margin, classes.table)]
say(all(same))
say(memory.store.filled.all() and few.store.filled.all() and memory.seen.sum()==3*42 and memory.seen.min()==3)
'''
    assert sorted(in_two_processes(tmp_path, body)) == ['0']*3 + ['1']*3
