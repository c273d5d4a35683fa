"What every method does and leaves alone in a training with fastai: each guarantee once, for all methods of tests/helpers/methods.py"
import math
from collections import namedtuple
from functools import cache
import pytest, torch, torch.nn.functional as F
from torch import nn
from fastai.vision.all import (Callback, CrossEntropyLossFlat, DataLoaders, Learner, SGD, TensorBase, TfmdDL, accuracy, load_learner, noop, set_seed)
from fastai.callback.channelslast import ChannelsLast
from fastai.callback.data import PartialDL
from fastai.callback.mixup import CutMix, MixUp
from fastai.callback.training import GradientAccumulation

from helpers.learners import CpuBf16, CtrlC, InBatch, make_learner, n_params, quiet, same, small, state
from helpers.methods import bn_net, method_cases, method_of, plain, tiny_resnet
from helpers.two_processes import in_two_processes
from focusnet_fastai.data.digits import digits_dls
from focusnet_fastai.focusnet import FocusNetCallback
from focusnet_fastai.methods.byot import BYOT
from focusnet_fastai.methods.distil import KD, TfKD, TfKDReg
from focusnet_fastai.methods.dropmax import DropMax
from focusnet_fastai.methods.frskd import FocusFRSKD, FRSKD, FRSKDF
from focusnet_fastai.methods.one import ONE
from focusnet_fastai.methods.online_smoothing import OnlineLabelSmoothing
from focusnet_fastai.methods.pskd import PSKD
from focusnet_fastai.methods.regularise import ConfidencePenalty, Focal, LabelSmoothing, MaxSup
from focusnet_fastai.methods.views import CSKD, DDGSD, SLA
from focusnet_fastai.methods.wrap import WrappedLearner
from focusnet_fastai.models import half_mobilenet_v2, lenet5, small_resnet18
from focusnet_fastai.terms import LossTerms

in_quick = ('FocusNet', 'CSKD', 'BYOT')  # a callback, one with loaders and one with a network of its own; `make quick` leaves the others out


def case(name, value): return pytest.param(value, id=name, marks=[] if name in in_quick else pytest.mark.slow)


cases = [case(*o) for o in method_cases()]
every = pytest.mark.parametrize('make', cases)
plain_columns = ['epoch', 'train_loss', 'valid_loss', 'accuracy', 'time']


@pytest.fixture(scope='module')
def data(): return small(n_train=48, bs=16)


def columns(cb, metrics=('accuracy',)): return ['epoch', 'train_loss', 'valid_loss', *metrics, *cb.weights, 'time']
def wraps(learn): return isinstance(learn, WrappedLearner)


def fit(learn, n=1, lr=3e-3, **kw):
    with quiet(learn): learn.fit(n, lr, **kw)


def plain_net(model): return getattr(model, 'net', model)


# --- numbers ---------------------------------------------------------------------------------------------------------------

kd = lambda **kw: KD(nn.Identity(), **kw)
wrong = [(LabelSmoothing, dict(eps=1.5)), (Focal, dict(gamma=-1)), (ConfidencePenalty, dict(beta=math.nan)), (ConfidencePenalty, dict(threshold=-1)), (ConfidencePenalty, dict(confidence=1.5)),
         (kd, dict(alpha=1.2)), (kd, dict(alpha=-.1, cls_weight=1.)), (kd, dict(cls_weight=-1.)), (kd, dict(T=0)), (lambda **kw: TfKD(nn.Identity(), **kw), dict(multiplier=-1)),
         (TfKDReg, dict(T=0)), (TfKDReg, dict(correct=99)), (CSKD, dict(lam=-1)), (CSKD, dict(T=0)), (DDGSD, dict(mu=-1)), (DDGSD, dict(lam=math.nan)), (SLA, dict(T=0)),
         (SLA, dict(joint=-1)), (FRSKD, dict(alpha=-1)), (FRSKD, dict(beta=-1)), (FRSKD, dict(T=0)), (FRSKD, dict(width=0)), (FRSKD, dict(width=1.5)), (FRSKDF, dict(alpha=-1)),
         (FocusFRSKD, dict(reading='D')), (FocusFRSKD, dict(feature=-1)), (FocusFRSKD, dict(label_smoothing=2)), (DropMax, dict(tau=0)), (DropMax, dict(aux=-1)),
         (BYOT, dict(alpha=1.5)), (BYOT, dict(T=0)), (BYOT, dict(feature=-1)), (ONE, dict(T=0)), (ONE, dict(ramp=80)), (ONE, dict(branches=1)), (ONE, dict(branches=2.5)),
         (PSKD, dict(alpha=1.2)), (PSKD, dict(k=0)), (OnlineLabelSmoothing, dict(soft=-1)), (MaxSup, dict(alpha=-1)), (MaxSup, dict(end=-1))]


@pytest.mark.parametrize('make,kw', wrong)
def test_wrong_numbers_are_named(make, kw):
    "When the method is made: the number, and what it may be"
    with pytest.raises(ValueError, match=f'`{next(iter(kw))}` must'): make(**kw)


def test_unknown_rules_are_named():
    with pytest.raises(ValueError, match="warm.*positive.*released"): FocusFRSKD(rule='warm')


# --- one training -----------------------------------------------------------------------------------------------------------

Trained = namedtuple('Trained', 'learn cb make before names values')


@pytest.fixture(scope='module', params=cases)
def trained(request, data, base, tmp_path_factory):
    "Two epochs; tests may look at it, predict and export, but not train it"
    learn = request.param(make_learner(data, path=tmp_path_factory.mktemp('trained')), base)
    before = state(learn.model)
    fit(learn, 2)
    return Trained(learn, method_of(learn), request.param, before, list(learn.recorder.metric_names), [list(o) for o in learn.recorder.values])


def test_columns(trained):
    "The terms stand between metrics and time, and their weighted sum is train_loss"
    assert trained.names == columns(trained.cb)
    for values in trained.values:
        row = dict(zip(trained.names[1:-1], values))
        assert len(values) == len(trained.names)-2 and all(math.isfinite(v) for v in values)
        assert sum(w*row[k] for k, w in trained.cb.weights.items()) == pytest.approx(row['train_loss'], abs=5e-5)


def test_every_parameter_learns(trained):
    after = state(trained.learn.model)
    assert [k for k, _ in trained.learn.model.named_parameters() if torch.equal(trained.before[k], after[k])] == []


def test_valid_loss_is_plain(trained):
    "Cross-entropy of what is deployed; `validate` gives the same, and names and values of the training stay"
    row, learn = trained.values[-1], trained.learn
    with quiet(learn): z, y = learn.get_preds(act=noop)
    assert z.shape == (64, 10) and row[1] == pytest.approx(F.cross_entropy(z, y).item(), abs=1e-5)
    with quiet(learn): assert list(learn.validate()) == pytest.approx(row[1:3], abs=1e-6)
    rec = learn.recorder
    assert all(len(v) == len(rec.metric_names)-2 for v in rec.values) and list(rec.metric_names) == trained.names


def test_export_and_predict(trained, data, tmp_path):
    "A plain learner without baseline, extra parts or callback; loaded again it predicts the same, and trains"
    learn = trained.learn
    learn.export(tmp_path/'m.pkl')
    again = load_learner(tmp_path/'m.pkl')
    assert type(again) is Learner and n_params(again.model) == n_params(getattr(trained.make, 'net', lambda: lenet5(10))())
    x = data.valid_ds[3][0]
    a, b, c = learn.predict(x), again.predict(x), plain(learn).predict(x)
    assert a[0] == b[0] == c[0] and torch.allclose(a[2], b[2], atol=1e-6) and torch.allclose(a[2], c[2], atol=1e-6)
    assert (tmp_path/'m.pkl').stat().st_size < 4*n_params(again.model) + 60_000
    again.dls = data
    again.remove_cb(LossTerms)
    fit(again)
    assert list(again.recorder.metric_names) == plain_columns


# --- callbacks come and go --------------------------------------------------------------------------------------------------

@every
def test_summary_then_go_on(data, base, make, capsys):
    "`summary` takes callbacks out and puts them back: columns stay exact, in this training and the next"
    learn = make(make_learner(data), base)
    cb = method_of(learn)
    for _ in range(2):
        text = str(learn.summary())
        assert 'Total params' in text and type(cb).__name__ in text
        fit(learn)
        assert list(learn.recorder.metric_names) == columns(cb) and [len(o) for o in learn.recorder.values] == [len(columns(cb))-2]
    assert method_of(learn) is cb


@every
def test_afterwards_it_is_gone(data, base, make, tmp_path):
    "Removed or unwrapped, a plain learner is left: it trains, predicts (twice) and is exported"
    learn = make(make_learner(data, path=tmp_path), base)
    cb, loss_func = method_of(learn), learn.loss_func
    fit(learn)
    done = learn.unwrap() if wraps(learn) else learn.remove_cb(type(cb))
    assert type(done) is Learner and not done._grab_cbs(LossTerms) and done.loss_func is loss_func
    fit(done)
    assert list(done.recorder.metric_names) == plain_columns and len(done.recorder.values[0]) == 3
    for _ in range(2): assert done.predict(data.valid_ds[0][0])[2].shape == (10,)
    done.export(tmp_path/'a.pkl')
    assert load_learner(tmp_path/'a.pkl').predict(data.valid_ds[0][0])[2].shape == (10,)


@every
def test_added_for_a_while(data, base, make):
    "As an argument of `fit`, or in `added_cbs`: gone afterwards, and as good the next time"
    learn = make(make_learner(data), base)
    cb = method_of(learn)
    if wraps(learn): learn.remove_cb(cb)
    else: learn.remove_cb(type(cb))
    n = len(learn.cbs)
    def once(): 
        with learn.added_cbs(cb): fit(learn)
    for go in (once, once) if wraps(learn) else (lambda: fit(learn, cbs=cb), once):
        go()
        assert list(learn.recorder.metric_names) == columns(cb) and len(learn.cbs) == n and not learn._grab_cbs(LossTerms)
    with quiet(learn): assert len(learn.validate()) == 2


@every
def test_one_object_for_two_learners(data, base, make):
    "Refused with the way out; the first learner keeps its method, and trains with it"
    first = make(make_learner(data), base)
    cb = method_of(first)
    with pytest.raises(ValueError, match='belongs to another learner: make a new one for each'):
        WrappedLearner(make_learner(data, model=plain_net(first.model)), cb) if wraps(first) else make_learner(data, cbs=cb)
    fit(first)
    assert list(first.recorder.metric_names) == columns(cb)


class Within(Callback):
    "Validates, and predicts, inside a training"
    run_valid, order = False, 70
    def ask(self):
        with self.learn.no_mbar(): self.learn.validate()
        with self.learn.no_mbar(): self.learn.get_preds(inner=False)
    def after_batch(self):
        if self.iter == 1: self.train_then(self.ask)
    def train_then(self, f):
        keep = {k: getattr(self.learn, k) for k in ('xb', 'yb', 'pred', 'loss', 'loss_grad', 'dl', 'iter', 'n_iter', 'training')}
        with torch.random.fork_rng(): f()
        for k, v in keep.items(): setattr(self.learn, k, v)
        self.model.train()
    def after_epoch(self):
        if not self.learn.lock.locked(): self.ask()


@every
def test_validate_inside_of_a_training(data, base, make):
    "The columns stay, and what is learned is the same"
    nets = []
    for cbs in ([], [Within()]):
        learn = make(make_learner(data), base)
        cb = method_of(learn)
        fit(learn, cbs=cbs)
        assert list(learn.recorder.metric_names) == columns(cb) and [len(o) for o in learn.recorder.values] == [len(columns(cb))-2]
        nets.append(state(learn.model))
    assert all(torch.allclose(nets[0][k].float(), nets[1][k].float(), atol=1e-5) for k in nets[0])


@every
def test_ctrl_c(data, base, make, tmp_path):
    "In the middle of a batch: nothing is left behind, and fit, predict and export work"
    learn = make(make_learner(data, path=tmp_path), base)
    loss_func, n_cbs = learn.loss_func, len(learn.cbs)
    for event in ('before_batch', 'after_pred', 'after_loss'):
        with pytest.raises(KeyboardInterrupt): fit(learn, cbs=CtrlC(event, at=1))
        assert learn.loss_func is loss_func and len(learn.cbs) == n_cbs
        learn.predict(data.valid_ds[0][0])
    fit(learn)
    assert list(learn.recorder.metric_names) == columns(method_of(learn))
    done = plain(learn)
    done.export(tmp_path/'a.pkl')
    with quiet(done): assert len(done.validate()) == 2


# --- fastai's own tricks ------------------------------------------------------------------------------------------------------

class FixedNorm(Callback):
    "Batch norm that does not depend on the batch"
    order = 5
    def before_train(self):
        for m in self.model.modules():
            if isinstance(m, nn.modules.batchnorm._BatchNorm): m.eval()


@every
def test_gradient_accumulation(base, make):
    "Two half batches accumulated are one whole batch: also for the partners, which do not depend on the batch size. Batch norm uses its running statistics"
    if (reason := getattr(make, 'of_a_batch', None)): pytest.skip(reason)
    nets = []
    for bs, cbs in ((32, []), (16, [GradientAccumulation(32)])):
        learn = make(make_learner(small(n_train=64, bs=bs, shuffle=False), opt_func=SGD), base)
        fit(learn, 1, .02, cbs=[*cbs, FixedNorm()])
        nets.append(learn.model)
    start = make(make_learner(small(n_train=64)), base).model
    for p, q in zip(nets[0].parameters(), nets[1].parameters()): assert torch.allclose(p, q, atol=1e-5)
    assert not torch.allclose(next(plain_net(nets[0]).parameters()), next(plain_net(start).parameters()), atol=1e-5)


@every
def test_autocast(data, base, make):
    learn, seen = make(make_learner(data), base), []
    conv = [m for m in learn.model.modules() if isinstance(m, nn.Conv2d)][0]
    hook = conv.register_forward_hook(lambda m, i, o: seen.append(o.dtype) if m.training and torch.is_grad_enabled() else None)
    terms = []
    def look(l):
        cb = method_of(l)
        assert not cb.baseline or cb.baseline_logits.dtype == torch.float32
        terms.append((l.loss_grad.dtype, cb.term_values.dtype))
    fit(learn, 1, 1e-3, cbs=[CpuBf16('bf16'), InBatch(look)])
    hook.remove()
    assert set(seen) == {torch.bfloat16} and set(terms) == {(torch.float32, torch.float32)} and not torch.is_autocast_enabled('cpu')
    assert math.isfinite(learn.recorder.values[0][0])


@every
def test_lr_find(data, base, make, tmp_path):
    "Runs to its end, with a loss that is not negative, and leaves the network as it was"
    learn = make(make_learner(data, path=tmp_path), base)
    before = state(learn.model)
    with learn.no_bar(): res = learn.lr_find(show_plot=False, num_it=12)
    assert 1e-7 < res.valley < 10 and len(learn.recorder.lrs) >= 6 and min(learn.recorder.losses) >= 0
    assert same(state(learn.model), before)


@every
def test_mixed_images(data, base, make):
    "MixUp and CutMix: trains, or refuses with a reason before the first step"
    for mix in (MixUp, CutMix):
        learn = make(make_learner(data), base)
        cb, before = method_of(learn), state(learn.model)
        if getattr(cb, 'no_mix', None) is None:
            fit(learn, 1, 1e-3, cbs=mix())
            assert math.isfinite(learn.recorder.values[0][0])
        else:
            with pytest.raises(ValueError, match=f'does not work with {mix.__name__}: .*mix'): fit(learn, cbs=mix())
            assert same(state(learn.model), before) and isinstance(learn.loss_func, CrossEntropyLossFlat)
            fit(learn)


@every
def test_resume(data, base, make, tmp_path):
    "Saved after an epoch and loaded into a newly made learner, the next epoch is the same: extra parts and optimiser included"
    def second(learn):
        set_seed(3)
        data.train.rng.seed(3)
        fit(learn)
        return state(learn.model)
    learn = make(make_learner(data, path=tmp_path), base)
    fit(learn)
    assert {id(p) for p in learn.opt.all_params()[:].itemgot(0)} == {id(p) for p in learn.model.parameters()}
    learn.save('ckpt')
    again = make(make_learner(data, seed=5, path=tmp_path), base)
    assert not same(state(again.model), state(learn.model))
    again.create_opt()
    again.load('ckpt')
    assert same(state(again.model), state(learn.model)) and same(second(again), second(learn))


@every
def test_divergence_is_said(data, base, make):
    "At the end of the epoch in which it happens"
    learn = make(make_learner(data), base)
    def poison(l):
        if l.epoch == 1: next(plain_net(l.model).parameters()).data.fill_(math.nan)
    with pytest.raises(ValueError, match='diverged in epoch 1'): fit(learn, 3, cbs=InBatch(poison))


# --- wrapped methods ----------------------------------------------------------------------------------------------------------

wrapping = pytest.mark.parametrize('cls', [case(o.__name__, o) for o in (CSKD, DDGSD, SLA, DropMax, FRSKD, FRSKDF, FocusFRSKD, BYOT, ONE)])


@wrapping
def test_wrap_is_one_call_each_way(data, cls):
    "The same network and loaders before and after; settings come along; nothing of the method is left"
    learn = make_learner(data, model=tiny_resnet(), opt_func=SGD, wd=.01)
    net, before, loader = learn.model, state(learn.model), learn.dls.train
    learn2 = cls.wrap(learn)
    assert isinstance(learn2, WrappedLearner) and learn2.opt_func is SGD and learn2.wd == .01 and learn2.loss_func is learn.loss_func
    fit(learn2)
    got = learn2.unwrap()
    assert got is learn and type(got) is Learner and got.dls is data and got.dls.train is loader and not got._grab_cbs(LossTerms)
    if cls is DropMax: assert n_params(got.model) == n_params(net) + n_params(net[-1])
    else: assert got.model is net and set(state(net)) == set(before)
    assert not same(state(net), before)
    with quiet(got), quiet(learn2): assert list(got.validate()) == pytest.approx(list(learn2.validate()), abs=1e-6)
    fit(learn2)  # and on, either way
    assert list(learn2.recorder.metric_names) == columns(learn2.method)
    fit(got)
    assert list(got.recorder.metric_names) == plain_columns


NETS = dict(small_resnet18=small_resnet18, half_mobilenet_v2_small=lambda n: half_mobilenet_v2(n, small=True), tiny=lambda n: tiny_resnet(n, 3))


@wrapping
@pytest.mark.parametrize('net', NETS.values(), ids=list(NETS))
def test_networks(cls, net):
    "Every parameter of network and extra parts gets a gradient; in eval mode, the network is what is deployed"
    torch.manual_seed(0)
    net, m = net(7), cls()
    wrapped, blocks = m.network(net, 7).train(), m.blocks
    x, y = torch.randn(4*blocks, 3, 16, 16), torch.tensor([0, 3, 6, 1])
    out = wrapped(x)
    m.outputs, m.epoch, m.n_epoch = out, 1, 2
    pred = out[0] if isinstance(out, tuple) else out
    m.all_logits, m.partner_logits = pred, pred.detach()
    terms = m.terms(pred[:4].float(), y)
    sum(w*terms[k].mean() for k, w in m.weights.items()).backward()
    assert [n for n, p in wrapped.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []
    with torch.no_grad():
        z = wrapped.eval()(x[:4])
        assert z.shape == (4, 7) and torch.equal(z, wrapped(x[:4])) and torch.equal(z, m.deployed(wrapped)(x[:4]))
        if cls is not DropMax: assert torch.equal(z, net(x[:4])) and m.deployed(wrapped) is net


# --- other data ----------------------------------------------------------------------------------------------------------------

@cache
def normalised():
    "400 digits and their classes"
    return tuple(map(torch.cat, zip(*[(x.as_subclass(torch.Tensor), t.as_subclass(torch.Tensor)) for x, t in digits_dls(n_train=400, bs=200).train])))


def tensors(n=24, n_inp=1, y=None, only=None):
    "Digits, normalised, one by one; of one class `only`, or with other labels"
    xs, ys = normalised()
    keep = torch.arange(len(xs)) if only is None else (ys == only).nonzero()[:, 0]
    return [(*[xs[i]]*n_inp, ys[i] if y is None else y[k]) for k, i in enumerate(keep[:n])]


def loaders(items, valid=None, bs=8, **kw):
    valid = items if valid is None else valid
    dls = DataLoaders(TfmdDL(items, bs=bs, shuffle=True, num_workers=0, **kw), TfmdDL(valid, bs=bs, num_workers=0))
    dls.c = 10
    return dls


def learner(dls, **kw):
    kw = dict(metrics=accuracy, loss_func=CrossEntropyLossFlat()) | kw
    set_seed(0)
    return Learner(dls, lenet5(10), **kw)


@every
def test_last_batch_of_one_image(base, make):
    "As in plain training"
    dls = small(n_train=33, bs=16, drop_last=False)
    learn = make(make_learner(dls), base)
    sizes = []
    fit(learn, cbs=InBatch(lambda l: sizes.append(len(l.y))))
    assert sizes == [16, 16, 1] and all(p.isfinite().all() for p in learn.model.parameters())


@every
def test_one_class_only(base, make):
    "Whose partners are then all images"
    learn = make(learner(loaders(tensors(only=3))), base.model)
    before = state(learn.model)
    fit(learn, 1)
    assert all(math.isfinite(v) for v in learn.recorder.values[-1]) and not same(before, state(learn.model))


@every
def test_labels_that_are_probabilities(base, make):
    "Trains, or says that it needs class indices, before the first step"
    y = torch.rand(24, 10).softmax(1)
    dls = loaders(tensors(y=y))
    try: learn = make(learner(dls, metrics=None, loss_func=nn.CrossEntropyLoss()), base.model)
    except ValueError as e:
        assert 'Each image must have one class index as its label' in str(e)
        return
    before = state(learn.model)
    try: fit(learn)
    except ValueError as e: assert 'needs class indices as targets' in str(e) and same(before, state(learn.model))
    else: assert all(math.isfinite(v) for v in learn.recorder.values[-1]) and not same(before, state(learn.model))


@every
def test_without_metrics(base, make):
    learn = make(learner(loaders(tensors()), metrics=None), base.model)
    fit(learn)
    assert list(learn.recorder.metric_names) == columns(method_of(learn), ()) and len(learn.recorder.values[0]) == 2+len(method_of(learn).weights)


@every
def test_without_validation(base, make):
    "An empty validation set: as in plain training, the columns of validation are missing in the log, and the terms are there"
    learn = make(learner(loaders(tensors(), valid=[])), base.model)
    before = state(learn.model)
    fit(learn)
    names, values = list(learn.recorder.metric_names), learn.recorder.values[0]
    assert names == columns(method_of(learn)) and not same(before, state(learn.model))
    assert values[0] == pytest.approx(sum(w*v for w, v in zip(method_of(learn).weights.values(), values[-len(method_of(learn).weights):])), abs=5e-5)


@every
def test_fewer_images_than_a_batch(base, make):
    "Without a step, a training says why; where incomplete batches count, it trains"
    learn = make(learner(loaders(tensors(6), drop_last=True)), base.model)
    before = state(learn.model)
    with pytest.raises(ValueError, match='not one batch to train on.*smaller `bs`'): fit(learn)
    assert same(before, state(learn.model))
    learn = make(learner(loaders(tensors(6))), base.model)
    fit(learn)
    assert not same(before, state(learn.model)) and len(learn.recorder.losses) == 1


@every
def test_channels_last(base, make):
    learn = make(learner(loaders(tensors()), cbs=ChannelsLast()), base.model)
    formats = []
    conv = [m for m in learn.model.modules() if isinstance(m, nn.Conv2d)][-1]
    fit(learn, cbs=InBatch(lambda l: formats.append(conv.weight.is_contiguous(memory_format=torch.channels_last))))
    assert formats and all(formats) and all(math.isfinite(v) for v in learn.recorder.values[-1])


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = lenet5(10)[:9], nn.Linear(120, 10)
    def forward(self, a, b): return self.head(self.body(a) + self.body(b))


@every
@pytest.mark.filterwarnings('ignore:The baseline is right on')  # here it is not trained
def test_two_inputs(make):
    "All inputs go to network, partners and baseline; methods that look into the network say whose stages they know"
    dls = loaders(tensors(n_inp=2))
    set_seed(0)
    two = lambda: Learner(dls, TwoInputs(), loss_func=CrossEntropyLossFlat(), metrics=accuracy)
    try: learn = make(two(), two())
    except ValueError as e:
        assert 'four stages of TwoInputs are not known' in str(e)
        return
    fit(learn)
    assert all(math.isfinite(v) for v in learn.recorder.values[-1])


@every
def test_plain_pytorch_loaders(base, make):
    "As in plain training; methods that make groups of images say what to use"
    torch_loader = lambda: torch.utils.data.DataLoader(tensors(), batch_size=8, shuffle=True)
    dls = DataLoaders(torch_loader(), torch_loader())
    dls.c = 10
    learn = learner(dls, metrics=None)
    try:
        learn2 = make(learn, base.model)
        fit(learn2)
    except TypeError as e:
        assert "must be one of fastai's, but is a DataLoader of torch" in str(e) and 'DataLoaders.from_dsets' in str(e)
        return
    assert list(learn2.recorder.metric_names) == columns(method_of(learn2), ()) and all(math.isfinite(v) for v in learn2.recorder.values[-1])


@every
def test_images_of_another_size(base, make):
    "Not square, and of an odd size: trains, or says why before the first step"
    for shape in ((28, 36), (33, 33)):
        items = [(torch.rand(1, *shape), torch.tensor(i % 10)) for i in range(16)]
        learn = learner(loaders(items))
        learn.model = bn_net()
        if hasattr(make, 'net') and make.net is tiny_resnet: learn.model = tiny_resnet()
        learn2 = make(learn, Learner(learn.dls, bn_net(), loss_func=CrossEntropyLossFlat()))
        before = state(learn2.model)
        try: fit(learn2)
        except ValueError as e: assert 'square images' in str(e) and shape[0] != shape[1] and same(before, state(learn2.model))
        else: assert all(math.isfinite(v) for v in learn2.recorder.values[-1])


@every
def test_one_cycle_over_a_part_of_the_images(base, make):
    "PartialDL, whose length is its own: the cycle ends with the last batch"
    items = tensors(40)
    dls = DataLoaders(PartialDL(items, bs=8, partial_n=16, num_workers=0), TfmdDL(items, bs=8, num_workers=0))
    dls.c = 10
    learn = make(learner(dls), base.model)
    with quiet(learn): learn.fit_one_cycle(3, 1e-3)
    lrs = learn.recorder.lrs
    assert len(lrs) == 6 and lrs[-1] < .2*max(lrs)


# --- several processes ----------------------------------------------------------------------------------------------------------

@pytest.mark.slow
def test_two_processes(tmp_path):
    "Groups are split between the processes, weights and all extra parts stay equal in both, and every parameter takes part"
    names = ['CSKD', 'DDGSD', 'SLA', 'FocusFRSKD', 'DropMax', 'BYOT', 'ONE']
    assert in_two_processes(tmp_path, '''
        from focusnet_fastai.methods.byot import BYOT
        from focusnet_fastai.methods.dropmax import DropMax
        from focusnet_fastai.methods.frskd import FocusFRSKD
        from focusnet_fastai.methods.one import ONE
        from focusnet_fastai.methods.views import CSKD, DDGSD, SLA
        from helpers.methods import tiny_resnet
        class Look(Callback):
            run_valid, order = False, 1
            def after_loss(self):
                m = self.learn.method
                assert isinstance(self.learn.model, DDP) and self.pred.shape == (16, 10) and self.y.shape == (16,)
                if m.loader: self.learn.seen.append(m.all_logits.shape[0] if m.blocks>1 else len(m.partner[0]))
        for cls in (CSKD, DDGSD, SLA, FocusFRSKD, DropMax, BYOT, ONE):
            set_seed(0)
            dls = digits_dls(n_train=64, bs=16)
            dls.train.rng = random.Random(int(os.environ['RANK']))   # the first process decides
            learn2 = cls.wrap(Learner(dls, tiny_resnet()))
            learn2.seen = []
            start = [(n, p, p.detach().clone()) for n,p in learn2.model.named_parameters()]
            with on_all_devices(learn2), learn2.no_bar(), learn2.no_logging(): learn2.fit(1, .01, cbs=Look())
            assert same_in_both(learn2.model), cls
            still = [n for n,p,old in start if torch.equal(p, old)]
            assert not still, (cls, still)
            assert learn2.seen == ([16*max(learn2.method.blocks, 1)]*2 if learn2.method.loader else []), learn2.seen
            assert not isinstance(learn2.model, DDP)
            if not rank_distrib(): print('OK', cls.__name__, len(learn2.unwrap().model))
    ''') == [f'{o} 10' for o in names]
