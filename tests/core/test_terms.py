"The fastai manners of `LossTerms` and `Baseline`, each with a real Learner."
import copy, math, textwrap
import pandas as pd, pytest, torch, torch.nn.functional as F
from functools import partial
from torch import nn
from fastai.vision.all import (BCEWithLogitsLossFlat, Callback, CancelStepException, CrossEntropyLossFlat, CSVLogger, DataLoaders, EarlyStoppingCallback,
                               LabelSmoothingCrossEntropyFlat, Learner, MixedPrecision, Normalize, OptimWrapper, Pipeline, SGD,
                               SaveModelCallback, TfmdDL, noop, set_seed)
from fastai.callback.mixup import MixUp, CutMix
from fastai.callback.training import GradientAccumulation
from fastai.callback.channelslast import ChannelsLast

from helpers import fresh
from helpers.learners import CpuBf16, CtrlC, InBatch, make_learner, quiet
from focusnet_fastai.data.digits import digits_dls
from focusnet_fastai.focusnet import FocusNetCallback
from focusnet_fastai.loss import focus_picking_loss, focus_terms
from focusnet_fastai.models import lenet5
from focusnet_fastai.reference import Baseline
from focusnet_fastai.terms import LossTerms, StopDiverged
from focusnet_fastai.checks import DivergedError


# --- the baseline -------------------------------------------------------------------------------------------------

def test_baseline_is_never_touched(dls):
    base = make_learner(dls, 1)
    base.create_opt(); base.model.train()
    for p in list(base.model.parameters())[:2]: p.requires_grad_(False)
    base.model(torch.randn(2, 1, 32, 32)).sum().backward()
    state = {k: v.clone() for k, v in base.model.state_dict().items()}
    flags = [p.requires_grad for p in base.model.parameters()]
    grads = [None if p.grad is None else p.grad.clone() for p in base.model.parameters()]
    learn = make_learner(dls, 2)
    with quiet(learn): learn.fit(1, 1e-3, cbs=FocusNetCallback(base))
    assert all(torch.equal(v, state[k]) for k, v in base.model.state_dict().items())
    assert flags == [p.requires_grad for p in base.model.parameters()] and base.model.training
    for p, g in zip(base.model.parameters(), grads):
        assert (p.grad is None) == (g is None) and (g is None or torch.equal(p.grad, g))


def test_batchnorm_of_the_baseline_stays(dls):
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Dropout(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10))
    seen = []
    learn = make_learner(dls)
    with quiet(learn): learn.fit(1, 1e-3, cbs=[FocusNetCallback(Baseline(net, fold=False)), InBatch(lambda l: seen.append(
        (l.focus_net.frozen.net.net[1].training, l.focus_net.frozen.net.net[1].num_batches_tracked.item(), l.focus_net.baseline_logits.requires_grad)))])
    assert set(seen) == {(False, 0, False)} and net[1].training


def test_baseline_sees_the_same_batch(dls, base):
    learn, seen = make_learner(dls), []
    def look(l):
        with torch.no_grad(): want = base.model.eval()(l.x)
        seen.append(torch.allclose(want, l.focus_net.baseline_logits))
    with quiet(learn): learn.fit(1, 1e-3, cbs=[MixUp(), FocusNetCallback(base), InBatch(look)])
    assert seen and all(seen)


def test_several_inputs(dls):
    class Two(nn.Module):
        def __init__(self): super().__init__(); self.net = lenet5(10)
        def forward(self, a, b): return self.net(a) + b.mean((1, 2, 3))[:, None]
    ds = [(x, 2*x, y) for x, y in [dls.train_ds[i] for i in range(64)]]
    two = DataLoaders.from_dsets(ds, ds, bs=16, n_inp=2)
    two.n_inp, two.c = 2, 10
    learn = Learner(two, Two(), loss_func=CrossEntropyLossFlat())
    with quiet(learn): learn.fit(1, 1e-3, cbs=FocusNetCallback(Two()))
    assert math.isfinite(learn.recorder.values[0][0])


def test_another_architecture(dls):
    tiny = nn.Sequential(nn.Conv2d(1, 8, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))
    learn = make_learner(dls)
    with quiet(learn): learn.fit(1, 1e-3, cbs=FocusNetCallback(tiny))
    assert len(learn.recorder.values[0]) == 6


# --- what is refused, and when -----------------------------------------------------------------------------------------

def refused(learn, baseline, words, error=ValueError, **kw):
    "Training is refused with `words`, before any weight moved, and the learner works afterwards"
    before = [p.clone() for p in learn.model.parameters()]
    with pytest.raises(error, match=words), quiet(learn): learn.fit(1, 1e-2, cbs=FocusNetCallback(baseline, **kw))
    assert all(torch.equal(a, b) for a, b in zip(before, learn.model.parameters()))
    assert not learn._grab_cbs(LossTerms)
    with quiet(learn): learn.fit(1, 1e-3)


def test_own_baseline(dls):
    learn = make_learner(dls)
    refused(learn, learn, 'own baseline')
    refused(learn, learn.model, 'own baseline')


def test_shared_parameters(dls):
    learn = make_learner(dls)
    twin = lenet5(10)
    list(twin.children())[0].weight = list(learn.model.children())[0].weight
    refused(learn, twin, 'share 1 parameters')


@pytest.mark.parametrize('source', ['module', 'learner'])
def test_wrong_class_count(dls, source):
    net = lenet5(7)
    if source == 'module': return refused(make_learner(dls), net, 'baseline gives 7 logits.*10 classes')
    small = Learner(dls, net)
    refused(make_learner(dls), Baseline(small, vocab=list('0123456')), 'knows 7 classes.*10')


def test_student_with_wrong_class_count(dls, base):
    learn = make_learner(dls, model=lenet5(12))
    with pytest.raises(ValueError, match=r'\(64, 12\).*\(64, 10\)'), quiet(learn): learn.fit(1, cbs=FocusNetCallback(base))


def test_other_vocab(dls):
    refused(make_learner(dls), Baseline(lenet5(10), vocab=list('abcdefghij')), "does not know.*'0'")


def test_permuted_vocab_is_matched_by_name(dls):
    "The same network with its outputs in another order is the same baseline"
    set_seed(3)
    net, order = lenet5(10), [3, 1, 4, 0, 5, 9, 2, 6, 8, 7]
    perm = copy.deepcopy(net)
    last = [m for m in perm.modules() if isinstance(m, nn.Linear)][-1]
    last.weight.data, last.bias.data = last.weight.data[order], last.bias.data[order]
    rows = []
    for b in (Baseline(net, vocab=[str(o) for o in range(10)]), Baseline(perm, vocab=[str(o) for o in order])):
        learn = make_learner(dls)
        with quiet(learn): learn.fit(1, 1e-3, cbs=FocusNetCallback(b))
        rows.append(list(learn.recorder.values[0]))
    assert rows[0] == pytest.approx(rows[1], abs=1e-6)


def test_other_normalize(dls):
    other = digits_dls(n_train=64)
    for dl in other: dl.after_batch = Pipeline([Normalize.from_stats([.1], [.9], cuda=False)])
    refused(make_learner(dls), Learner(other, lenet5(10)), 'normalised differently.*0.1')
    none = digits_dls(n_train=64)
    for dl in none: dl.after_batch = Pipeline([])
    refused(make_learner(dls), Learner(none, lenet5(10)), r'normalised differently: \(mean, std\) is \[\]')


def test_nan_logits(dls):
    net = lenet5(10)
    list(net.parameters())[-1].data[0] = math.nan
    refused(make_learner(dls), net, 'not finite.*first batch')


def test_nan_logits_later(dls):
    "Noticed once an epoch, from a flag"
    class Late(nn.Module):
        def __init__(self): super().__init__(); self.net, self.n = lenet5(10), 0
        def forward(self, x):
            self.n += 1
            return self.net(x)*(math.nan if self.n == 3 else 1)
    learn = make_learner(dls)
    with pytest.raises(ValueError, match='not finite.*epoch 0'), quiet(learn): learn.fit(2, 1e-3, cbs=FocusNetCallback(Late()))


def test_multi_label_loss(dls):
    learn = make_learner(dls, loss_func=BCEWithLogitsLossFlat())
    with pytest.raises(ValueError, match='one label an image'), quiet(learn): learn.fit(1, cbs=FocusNetCallback(lenet5(10)))


def test_multi_label_targets(dls):
    ds = [(x, torch.tensor([1., 1.] + [0.]*8)) for x, _ in [dls.train_ds[i] for i in range(64)]]
    two = DataLoaders.from_dsets(ds, ds, bs=16)
    two.c = 10
    learn = Learner(two, lenet5(10), loss_func=nn.CrossEntropyLoss())
    with pytest.raises(ValueError, match='Multi-label'), quiet(learn): learn.fit(1, cbs=FocusNetCallback(lenet5(10)))


def test_probability_targets_train(dls):
    ds = [(x, .9*F.one_hot(torch.tensor(int(y)), 10) + .01) for x, y in [dls.train_ds[i] for i in range(64)]]
    soft = DataLoaders.from_dsets(ds, ds, bs=16)
    soft.c = 10
    learn = Learner(soft, lenet5(10), loss_func=nn.CrossEntropyLoss())
    with quiet(learn): learn.fit(1, 1e-3, cbs=FocusNetCallback(lenet5(10)))
    assert math.isfinite(learn.recorder.values[0][0])


@pytest.mark.parametrize('loss', [CrossEntropyLossFlat(weight=torch.ones(10)), LabelSmoothingCrossEntropyFlat(), nn.CrossEntropyLoss(label_smoothing=.1)])
def test_weighted_loss_warns(dls, base, loss):
    learn = make_learner(dls, loss_func=loss)
    with pytest.warns(UserWarning, match='only count for valid_loss'), quiet(learn): learn.fit(1, 1e-3, cbs=FocusNetCallback(base))


def test_plain_loss_does_not_warn(dls, base, recwarn):
    learn = make_learner(dls)
    with quiet(learn): learn.fit(1, 1e-3, cbs=FocusNetCallback(base))
    assert not [w for w in recwarn if 'valid_loss' in str(w.message) or 'shadowing' in str(w.message)]


def test_two_methods(dls, base):
    learn = make_learner(dls)
    with pytest.raises(ValueError, match='Only one method'), quiet(learn):
        learn.fit(1, cbs=[FocusNetCallback(base), FocusNetCallback(base)])
    assert not learn._grab_cbs(LossTerms)


def test_terms_and_weights_must_agree(dls):
    class Odd(LossTerms):
        weights = dict(a=1.)
        def terms(self, pred, y): return dict(b=pred.sum(1))
    learn = make_learner(dls)
    with pytest.raises(ValueError, match=r"\['b'\].*\['a'\]"), quiet(learn): learn.fit(1, cbs=Odd())


# --- the loss in training and validation ---------------------------------------------------------------------------------

def test_training_follows_the_focus_picking_loss(dls, base):
    "Against a loop written by hand: same batches, same weights in the end"
    learn = make_learner(dls)
    net, batches = copy.deepcopy(learn.model), []
    learn.opt_func = partial(OptimWrapper, opt=torch.optim.SGD)
    with quiet(learn): learn.fit(1, .05, cbs=[FocusNetCallback(base), InBatch(lambda l: batches.append((l.x.clone(), l.y.clone())))])
    opt, b = torch.optim.SGD(net.parameters(), .05), copy.deepcopy(base.model).eval()
    net.train()
    for x, y in batches:
        with torch.no_grad(): zb = b(x)
        focus_picking_loss(net(x), zb, y).backward()
        opt.step(); opt.zero_grad()
    assert len(batches) == 4
    for p, q in zip(learn.model.parameters(), net.parameters()): assert torch.allclose(p, q, atol=1e-6)


def test_valid_loss_is_plain(dls, base):
    learn = make_learner(dls)
    with quiet(learn): learn.fit(2, 1e-3, cbs=FocusNetCallback(base))
    logged = learn.recorder.values[-1][1:3]
    z, y = learn.get_preds(act=noop)
    assert logged[0] == pytest.approx(F.cross_entropy(z, y).item(), abs=1e-5)
    assert list(learn.validate()) == pytest.approx(list(logged), abs=1e-6)


@pytest.mark.parametrize('alpha,beta', [(1., 1.), (.5, 2.)])
def test_terms_as_columns(dls, base, alpha, beta, tmp_path):
    learn = make_learner(dls, path=tmp_path)
    rows = []
    learn.logger = rows.append
    with learn.no_bar():
        learn.logger = rows.append
        learn.fit(3, 1e-3, cbs=[FocusNetCallback(base, alpha, beta), CSVLogger()])
    names = ['epoch', 'train_loss', 'valid_loss', 'accuracy', 'cls', 'attention', 'entropy', 'time']
    assert list(learn.recorder.metric_names) == names
    df = pd.read_csv(tmp_path/'history.csv')
    assert list(df.columns) == names and len(df) == 3
    for v in learn.recorder.values:
        train, _, _, cls, att, ent = v
        assert cls + alpha*att - beta*ent == pytest.approx(train, abs=1e-5)
    assert len(learn.validate()) == 2 and learn.metrics.attrgot('name') == ['accuracy']
    assert learn.recorder.loss.name == 'loss'


def test_columns_leave_with_the_callback(dls, base):
    learn = make_learner(dls)
    with quiet(learn):
        learn.fit(1, 1e-3, cbs=FocusNetCallback(base))
        learn.fit(1, 1e-3)
    assert list(learn.recorder.metric_names) == ['epoch', 'train_loss', 'valid_loss', 'accuracy', 'time']
    assert len(learn.recorder.values[0]) == 3


def test_tracker_callbacks_watch_the_right_column(dls, base, tmp_path):
    learn = make_learner(dls, path=tmp_path)
    save = SaveModelCallback(monitor='valid_loss')
    with quiet(learn): learn.fit(2, 1e-3, cbs=[FocusNetCallback(base), save])
    assert save.best == pytest.approx(min(v[1] for v in learn.recorder.values), abs=1e-6)
    with quiet(learn): learn.fit(1, 1e-3, cbs=[FocusNetCallback(base), EarlyStoppingCallback(monitor='attention')])


def test_without_recorder_metrics(dls, base):
    learn = make_learner(dls)
    learn.remove_cbs([learn.recorder, learn.progress])
    learn.fit(1, 1e-3, cbs=FocusNetCallback(base))


# --- interruption, reuse, export -----------------------------------------------------------------------------------------

@pytest.mark.parametrize('event', ['before_batch', 'after_pred', 'after_loss', 'after_batch'])
def test_ctrl_c_then_go_on(dls, base, event, tmp_path):
    learn = make_learner(dls, path=tmp_path)
    loss_func, n_cbs = learn.loss_func, len(learn.cbs)
    with pytest.raises(KeyboardInterrupt), quiet(learn): learn.fit(2, 1e-3, cbs=[FocusNetCallback(base), CtrlC(event)])
    assert learn.loss_func is loss_func and len(learn.cbs) == n_cbs and not hasattr(learn, 'focus_net')
    with quiet(learn): learn.fit(1, 1e-3)
    assert list(learn.recorder.metric_names)[-2:] == ['accuracy', 'time']
    with quiet(learn): learn.fit(1, 1e-3, cbs=FocusNetCallback(base))
    assert len(learn.recorder.values[0]) == 6
    learn.predict(dls.valid_ds[0][0])
    learn.export(tmp_path/'a.pkl')


def test_ctrl_c_with_a_permanent_callback(dls, base):
    learn = make_learner(dls, cbs=FocusNetCallback(base))
    with pytest.raises(KeyboardInterrupt), quiet(learn): learn.fit(1, 1e-3, cbs=CtrlC('after_loss'))
    assert len(learn.validate()) == 2
    with quiet(learn): learn.fit(1, 1e-3)
    assert len(learn.recorder.values[0]) == 6 and learn.focus_net.frozen is None


def test_one_callback_object_twice(dls, base):
    cb, rows = FocusNetCallback(base), []
    for _ in range(2):
        learn = make_learner(dls)
        with quiet(learn): learn.fit(1, 1e-3, cbs=cb)
        rows.append(list(learn.recorder.values[0]))
    assert rows[0] == rows[1]


def test_events_outside_a_fit(dls, base):
    learn = make_learner(dls, cbs=FocusNetCallback(base))
    assert len(learn.validate()) == 2
    assert learn.get_preds()[0].shape == (len(dls.valid_ds), 10)
    learn.predict(dls.valid_ds[0][0]); learn.summary()
    with learn.no_bar(): learn.lr_find(show_plot=False, num_it=10)
    assert learn._grab_cbs(LossTerms) and learn.focus_net.frozen is None


@pytest.mark.slow
def test_export_size_and_reload_without_the_baseline(dls, base, tmp_path):
    plain, main, attached = [make_learner(dls, path=tmp_path) for _ in range(3)]
    with quiet(plain): plain.fit(1, 1e-3)
    with quiet(main): main.fit(1, 1e-3, cbs=FocusNetCallback(base))
    big = nn.Sequential(nn.Flatten(), nn.Linear(1024, 4000), nn.Linear(4000, 10))  # 16 MB that must not be exported
    attached.add_cb(FocusNetCallback(big))
    with quiet(attached): attached.fit(1, 1e-3)
    files = [tmp_path/f'{n}.pkl' for n in ('plain', 'main', 'attached')]
    for l, f in zip((plain, main, attached), files): l.export(f)
    sizes = [f.stat().st_size for f in files]
    assert abs(sizes[1] - sizes[0]) < 2000 and sizes[2] - sizes[0] < 20_000
    script = textwrap.dedent(f'''
        import warnings; warnings.simplefilter('ignore')
        import sys, torch
        from fastai.vision.all import load_learner
        from sklearn.datasets import load_digits
        x = torch.nn.functional.interpolate(torch.tensor(load_digits().images[:1]/16, dtype=torch.float32)[None], size=32)
        learn = load_learner({str(files[1])!r})
        assert not any(m.startswith('focusnet_fastai.focusnet') for m in sys.modules), 'the plain export needs focusnet'
        a = learn.predict(x[0])
        learn = load_learner({str(files[2])!r})
        b = learn.predict(x[0])
        assert learn.focus_net.baseline is None
        try: learn.fit(1)
        except Exception as e: print('REFUSED', type(e).__name__, e)
        print('CLASSES', a[0], b[0])
    ''')
    out = fresh.python(script)
    assert out.returncode == 0, out.stderr[-2000:]
    assert 'CLASSES' in out.stdout


def test_reloaded_callback_asks_for_a_baseline(dls, base):
    learn = make_learner(dls, cbs=FocusNetCallback(base))
    learn.focus_net.baseline = None  # as after load_learner
    learn.validate()
    with pytest.raises(RuntimeError, match='no baseline.*pass a new one'), quiet(learn): learn.fit(1)


def test_save_and_load_weights(dls, base, tmp_path):
    learn = make_learner(dls, path=tmp_path, cbs=FocusNetCallback(base))
    with quiet(learn): learn.fit(1, 1e-3)
    state = torch.load(learn.save('x', with_opt=False), weights_only=True)
    assert set(state) == set(learn.model.state_dict())


# --- together with other callbacks ---------------------------------------------------------------------------------------

@pytest.mark.slow
def test_gradient_accumulation(dls, base):
    "Two half batches accumulated = one whole batch, in the weights and in the logged loss"
    ds = [dls.train_ds[i] for i in range(128)]
    res = []
    for bs, cbs in [(64, []), (32, [GradientAccumulation(64)])]:
        d = DataLoaders(TfmdDL(ds, bs=bs), TfmdDL(ds, bs=bs))
        d.c, d.vocab = 10, dls.vocab
        learn = make_learner(d, loss_func=CrossEntropyLossFlat(), opt_func=SGD)
        with quiet(learn): learn.fit(1, .05, cbs=[FocusNetCallback(base.model), *cbs])
        res.append(learn)
    for p, q in zip(res[0].model.parameters(), res[1].model.parameters()): assert torch.allclose(p, q, atol=1e-5)
    train, *_, cls, att, ent = res[1].recorder.values[0]
    assert cls + att - ent == pytest.approx(train, abs=1e-5)


@pytest.mark.parametrize('mix', [MixUp, CutMix])
def test_mixed_images_blend_the_terms(dls, base, mix):
    "Against a blend made by hand from the handler's partner labels and lambda"
    learn, seen = make_learner(dls), []
    handler = mix()
    def look(l):
        z, zb, lam = l.pred.detach(), l.focus_net.baseline_logits, handler.lam
        a, b = [focus_terms(z, zb, y) for y in (l.y, handler.yb1[0])]
        want = [(lam*a[k] + (1-lam)*b[k]).mean().item() for k in a]
        seen.append((l.loss.item(), want[0] + want[1] - want[2], l.focus_net.term_values.tolist(), want))
    with quiet(learn): learn.fit(1, 1e-3, cbs=[handler, FocusNetCallback(base), InBatch(look)])
    assert len(seen) == 4
    for loss, total, terms, want in seen:
        assert loss == pytest.approx(total, abs=1e-5) and terms == pytest.approx(want, abs=1e-5)
    assert any(abs(o.max()-1) > 1e-3 for o in [1-handler.lam]) or mix is CutMix


def test_lr_find(dls, base):
    learn = make_learner(dls)
    before = [p.clone() for p in learn.model.parameters()]
    with learn.no_bar(), learn.added_cbs(FocusNetCallback(base)): res = learn.lr_find(show_plot=False, num_it=30)
    assert 1e-7 < res.valley < 10 and len(learn.recorder.lrs) >= 20
    assert all(torch.equal(a, b) for a, b in zip(before, learn.model.parameters()))


@pytest.mark.slow
def test_lr_find_on_a_negative_loss(base):
    "released rule and alpha = 0: the loss of a trained network is negative; the search must not stop at once"
    dls = digits_dls(n_train=256)
    learn = make_learner(dls)
    focus = lambda: FocusNetCallback(base, alpha=0., rule='released')
    with quiet(learn): learn.fit_one_cycle(8, 3e-3, cbs=focus())
    assert learn.recorder.values[-1][0] < 0
    with learn.no_bar(), learn.added_cbs(focus()): learn.lr_find(show_plot=False, num_it=40)
    assert len(learn.recorder.lrs) > 20 and min(learn.recorder.losses) >= 0


def test_gradient_is_the_same_during_lr_find(dls, base):
    "Only the reported loss is shifted"
    grads = []
    for finding in (False, True):
        learn = make_learner(dls)
        if finding: learn.lr_finder = True
        with quiet(learn): learn.fit(1, 0., cbs=[FocusNetCallback(base), InBatch(lambda l: grads.append(
            (l.loss_grad.item(), l.loss.item())))])
    assert all(l == g for g, l in grads[:4])
    assert all(l == pytest.approx(g + math.log(10), abs=1e-5) for g, l in grads[4:])


def test_autocast(dls, base):
    learn, seen = make_learner(dls), []
    def spy(module, *_): seen.append(torch.is_autocast_enabled('cpu'))
    net = copy.deepcopy(base.model)
    conv = [m for m in net.modules() if isinstance(m, nn.Conv2d)][0]
    dtypes = []
    conv.register_forward_hook(lambda m, i, o: (spy(m), dtypes.append(o.dtype)) and None)
    with quiet(learn): learn.fit(1, 1e-3, cbs=[CpuBf16('bf16'), FocusNetCallback(net), InBatch(
        lambda l: dtypes.append((l.loss_grad.dtype, l.focus_net.baseline_logits.dtype)))])
    frozen_calls = [d for d in dtypes if isinstance(d, torch.dtype)]
    assert frozen_calls[0] == torch.float32 and set(frozen_calls[1:]) == {torch.bfloat16} and all(seen[1:])
    assert {d for d in dtypes if isinstance(d, tuple)} == {(torch.float32, torch.float32)}
    assert not torch.is_autocast_enabled('cpu')


def test_refusal_leaves_no_autocast(dls):
    net = lenet5(10)
    list(net.parameters())[-1].data[0] = math.nan
    learn = make_learner(dls)
    with pytest.raises(ValueError, match='not finite'), quiet(learn): learn.fit(1, cbs=[CpuBf16('bf16'), FocusNetCallback(net)])
    assert not torch.is_autocast_enabled('cpu')


def test_channels_last(dls, base):
    learn, seen = make_learner(dls, cbs=ChannelsLast()), []
    def last(m): return any(p.ndim == 4 and not p.is_contiguous() for p in m.parameters())
    with quiet(learn): learn.fit(1, 1e-3, cbs=[FocusNetCallback(base), InBatch(lambda l: seen.append(last(l.focus_net.frozen)))])
    assert seen and all(seen) and not last(base.model)


def test_tuple_outputs(dls):
    "A wrapped network may return a tuple in training: the first output are the logits"
    class Heads(nn.Module):
        def __init__(self): super().__init__(); self.net = lenet5(10)
        def forward(self, x):
            z = self.net(x)
            return (z, 2*z) if self.training else z
    class Both(LossTerms):
        weights = dict(main=1., extra=.5)
        def terms(self, pred, y): return {k: F.cross_entropy(o, y, reduction='none') for k, o in zip(self.weights, self.outputs)}
    learn = make_learner(dls, model=Heads())
    with quiet(learn): learn.fit(2, 1e-3, cbs=Both())
    train, _, _, main, extra = learn.recorder.values[-1]
    assert main + .5*extra == pytest.approx(train, abs=1e-5)


@pytest.mark.slow
def test_compiled_and_parallel_baselines_are_unwrapped(dls):
    net = lenet5(10)
    for wrapped in (nn.DataParallel(net), torch.compile(net)):
        learn = make_learner(dls)
        with quiet(learn): learn.fit(1, 1e-3, cbs=FocusNetCallback(wrapped))


# --- columns and method have one owner -----------------------------------------------------------------------------------

NAMES = ['epoch', 'train_loss', 'valid_loss', 'accuracy', 'cls', 'attention', 'entropy', 'time']
PLAIN = NAMES[:4] + NAMES[-1:]


def fitted(learn, names):
    "One epoch more: the columns are `names`, and each row has a number for each of them"
    with quiet(learn): learn.fit(1, 1e-3)
    assert list(learn.recorder.metric_names) == names and [len(o) for o in learn.recorder.values] == [len(names)-2]
    assert all(math.isfinite(o) for o in learn.recorder.values[0])


def remove_and_add(learn):
    with learn.removed_cbs(learn._grab_cbs(LossTerms)): pass


def interrupt(learn):
    with pytest.raises(KeyboardInterrupt): learn.fit(1, cbs=CtrlC('after_loss'))


WAYS = dict(summary=lambda l: l.summary(), validate=lambda l: l.validate(), get_preds=lambda l: l.get_preds(), predict=lambda l: l.predict(l.dls.valid_ds[0][0]),
            removed=remove_and_add, ctrl_c=interrupt, lr_find=lambda l: l.lr_find(show_plot=False, num_it=5), twice=lambda l: (l.summary(), l.summary()),
            no_bar=lambda l: l.no_bar().__enter__(), tta=lambda l: l.tta(n=1) if hasattr(l.dls.valid.dataset, 'set_split_idx') else None)


@pytest.mark.parametrize('way', WAYS)
def test_columns_are_exact_whatever_happens(dls, base, way, tmp_path):
    learn = make_learner(dls, cbs=FocusNetCallback(base), path=tmp_path)
    with quiet(learn): WAYS[way](learn)
    fitted(learn, NAMES)
    with quiet(learn): WAYS[way](learn)
    learn.remove_cb(FocusNetCallback)
    assert not learn._grab_cbs(LossTerms)
    fitted(learn, PLAIN)
    for _ in range(2): learn.predict(dls.valid_ds[0][0])
    learn.export(tmp_path/'a.pkl')
    from fastai.vision.all import load_learner
    assert load_learner(tmp_path/'a.pkl').predict(dls.valid_ds[0][0])[0] == learn.predict(dls.valid_ds[0][0])[0]


class Nested(Callback):
    "Calls `f(learn)` at an event of the training itself"
    def __init__(self, event, f, order=0):
        self.f, self.order, self.done = f, order, 0
        setattr(self, event, self.go)
    def go(self):
        if self.learn.lock.locked(): return
        self.done += 1
        self.f(self.learn)


@pytest.mark.parametrize('event,order', [('after_epoch', 0), ('after_epoch', 70), ('before_epoch', 0), ('before_validate', 0), ('after_train', 0), ('after_train', 55)])
@pytest.mark.parametrize('call', ['validate', 'get_preds'])
def test_validating_inside_a_fit(dls, base, event, order, call):
    "Names and rows are those of a fit without it"
    rows = []
    for cbs in ([], [Nested(event, lambda l: getattr(l, call)(), order)]):
        learn = make_learner(dls)
        with quiet(learn): learn.fit(2, 1e-3, cbs=[FocusNetCallback(base), *cbs])
        assert list(learn.recorder.metric_names) == NAMES
        rows.append([list(o) for o in learn.recorder.values])
        assert not cbs or cbs[0].done == 2
    assert rows[0] == [pytest.approx(o) for o in rows[1]]
    assert len(learn.recorder.losses) == 8


def test_validating_after_a_fit_keeps_its_record(dls, base):
    for permanent in (True, False):
        learn = make_learner(dls, cbs=FocusNetCallback(base) if permanent else None)
        with quiet(learn): learn.fit(2, 1e-3, cbs=None if permanent else FocusNetCallback(base))
        rows, losses = [list(o) for o in learn.recorder.values], list(learn.recorder.losses)
        loss, acc = learn.validate()
        learn.get_preds()
        assert list(learn.recorder.metric_names) == NAMES and [list(o) for o in learn.recorder.values] == rows and learn.recorder.losses == losses
        assert [loss, acc] == pytest.approx(rows[-1][1:3], abs=1e-6)


def test_recorder_without_a_method_is_fastais(dls):
    "A learner that never had a method records, and forgets, as fastai does"
    learn = make_learner(dls)
    fitted(learn, PLAIN)
    got = learn.validate()
    assert [list(o) for o in learn.recorder.values] == [list(got)] and list(learn.recorder.metric_names) == PLAIN


def test_recorder_with_other_columns(dls, base):
    learn = make_learner(dls, cbs=FocusNetCallback(base))
    learn.recorder.train_metrics, learn.recorder.add_time = True, False
    with quiet(learn): learn.fit(1, 1e-3)
    names = ['epoch', 'train_loss', 'train_accuracy', 'valid_loss', 'valid_accuracy', 'cls', 'attention', 'entropy']
    assert list(learn.recorder.metric_names) == names and len(learn.recorder.values[0]) == 7


def test_one_callback_for_two_learners_is_refused(dls, base):
    cbs = [FocusNetCallback(base)]
    a = make_learner(dls, cbs=cbs)
    with pytest.raises(ValueError, match='belongs to another learner.*make a new one'): make_learner(dls, cbs=cbs)
    b = make_learner(dls)
    with pytest.raises(ValueError, match='belongs to another learner'), quiet(b): b.fit(1, cbs=cbs)
    fitted(a, NAMES)
    fitted(b, PLAIN)
    a.remove_cb(cbs[0])
    b.add_cb(cbs[0])
    fitted(b, NAMES)
    fitted(a, PLAIN)


def test_the_advice_works(dls, base, tmp_path):
    "What the messages of a reloaded learner, and of a cell run twice, say to type"
    from fastai.vision.all import load_learner
    learn = make_learner(dls, cbs=FocusNetCallback(base))
    learn.export(tmp_path/'a.pkl')
    again = load_learner(tmp_path/'a.pkl')
    again.dls = dls
    for learn, words in ((again, 'no baseline'), (make_learner(dls, cbs=[FocusNetCallback(base), FocusNetCallback(base)]), 'there are 2')):
        with pytest.raises((RuntimeError, ValueError), match=words) as e, quiet(learn): learn.fit(1)
        assert 'learn.remove_cb(FocusNetCallback)' in str(e.value) and 'cbs=' in str(e.value)
        learn.remove_cb(FocusNetCallback)
        with quiet(learn): learn.fit(1, 1e-3, cbs=FocusNetCallback(base))
        assert list(learn.recorder.metric_names) == NAMES


def test_no_images(dls, base, tmp_path):
    from fastai.vision.all import load_learner
    make_learner(dls).export(tmp_path/'a.pkl')
    learn = load_learner(tmp_path/'a.pkl')
    before = [p.clone() for p in learn.model.parameters()]
    with pytest.raises(ValueError, match='not one batch.*learn.dls = dls'), quiet(learn): learn.fit(1, 1e-3, cbs=FocusNetCallback(base))
    assert all(torch.equal(a, b) for a, b in zip(before, learn.model.parameters()))
    few = make_learner(digits_dls(n_train=20, bs=64))
    few.dls.loaders[0] = few.dls.loaders[0].new(drop_last=True)
    with pytest.raises(ValueError, match='smaller `bs`'), quiet(few): few.fit(1, 1e-3, cbs=FocusNetCallback(base))


# --- other losses, targets and outputs --------------------------------------------------------------------------------------

def my_loss(pred, y): return F.cross_entropy(pred, y)
class MyLoss(nn.Module):
    def forward(self, pred, y): return F.cross_entropy(pred, y)


@pytest.mark.parametrize('loss,words', [(partial(F.cross_entropy, weight=torch.ones(10)), 'partial'), (lambda p, y: F.cross_entropy(p, y), '<lambda>'),
                                        (my_loss, 'my_loss'), (MyLoss(), 'MyLoss'), (nn.NLLLoss(), 'NLLLoss')])
def test_custom_loss_warns_once(dls, base, loss, words):
    learn = make_learner(dls, loss_func=loss)
    with pytest.warns(UserWarning) as told, quiet(learn): learn.fit(1, 1e-3, cbs=FocusNetCallback(base))
    assert [str(o.message) for o in told if 'valid_loss' in str(o.message)] == [f"FocusNetCallback trains on its own loss: the learner's loss {words} only counts for valid_loss"]


@pytest.mark.parametrize('loss', [nn.CrossEntropyLoss(), CrossEntropyLossFlat(), F.cross_entropy])
def test_plain_losses_do_not_warn(dls, base, loss, recwarn):
    learn = make_learner(dls, loss_func=loss)
    with quiet(learn): learn.fit(1, 1e-3, cbs=FocusNetCallback(base))
    assert not [o for o in recwarn if 'valid_loss' in str(o.message)]


@pytest.mark.parametrize('make,words', [(lambda y: y[:, None], 'squeeze them'), (lambda y: y.float(), 'whole numbers'), (lambda y: y[:, None].float()*0 + 1, 'squeeze them'),
                                        (lambda y: torch.stack([y, y], 1), 'Multi-label'), (lambda y: F.one_hot(y, 10) | F.one_hot((y+1)%10, 10), 'Multi-label'),
                                        (lambda y: y[:, None, None], 'one class'), (lambda y: F.one_hot(y, 10).float()*2 - .1, 'Multi-label')])
def test_the_reason_of_wrong_targets(make, words):
    from focusnet_fastai.checks import check_targets
    y = torch.arange(8)
    with pytest.raises(ValueError, match=words): check_targets(make(y))
    for ok in (y, y.int(), F.one_hot(y, 10), F.one_hot(y, 10).float()*.9 + .01): check_targets(ok)


def test_one_label_in_a_list_of_labels_is_still_multi_label():
    from fastai.vision.all import TensorMultiCategory
    from focusnet_fastai.checks import check_targets
    with pytest.raises(ValueError, match='Multi-label'): check_targets(TensorMultiCategory(F.one_hot(torch.arange(4), 10).float()))


class Auxiliary(nn.Module):
    "Two outputs in training, as Inception has them"
    def __init__(self): super().__init__(); self.net, self.aux = lenet5(10), nn.Linear(1024, 10)
    def forward(self, x): return (self.net(x), self.aux(x.flatten(1))) if self.training else self.net(x)


@pytest.mark.parametrize('loss', [CrossEntropyLossFlat(), lambda out, y: F.cross_entropy(out[0], y) + .4*F.cross_entropy(out[1], y) if isinstance(out, tuple) else F.cross_entropy(out, y)])
def test_auxiliary_outputs_are_refused(dls, base, loss, recwarn):
    learn = make_learner(dls, model=Auxiliary(), loss_func=loss)
    before = [p.clone() for p in learn.model.parameters()]
    with pytest.raises(ValueError, match='Auxiliary gives 2 outputs.*FocusNetCallback trains on the first alone.*aux_logits'), quiet(learn):
        learn.fit(1, 1e-2, cbs=[CpuBf16('bf16'), FocusNetCallback(base)])
    assert not torch.is_autocast_enabled('cpu') and all(torch.equal(a, b) for a, b in zip(before, learn.model.parameters()))


# --- untrained and diverged --------------------------------------------------------------------------------------------------

def test_untrained_baseline_is_warned_of_before_the_first_step(dls, base):
    seen = []
    learn = make_learner(dls)
    with pytest.warns(UserWarning, match='no better than guessing among 10 classes') as told, quiet(learn):
        learn.fit(2, 1e-3, cbs=[FocusNetCallback(lenet5(10)), InBatch(lambda l: seen.append(len(told)))])
    assert seen[0] == 1 and sum('guessing' in str(o.message) for o in told) == 1


def test_untrained_baseline_on_small_batches(base):
    "One batch of four images proves nothing; the first epoch does"
    learn = make_learner(digits_dls(n_train=256, bs=4))
    with pytest.warns(UserWarning, match=r'of 256 images, no better'), quiet(learn): learn.fit(1, 1e-3, cbs=FocusNetCallback(lenet5(10)))


def test_trained_baselines_are_not_accused(dls, base, recwarn):
    for d in (dls, digits_dls(n_train=64, bs=2)):
        learn = make_learner(d)
        with quiet(learn): learn.fit(1, 1e-3, cbs=FocusNetCallback(base))
    assert not [o for o in recwarn if 'guessing' in str(o.message)]


@pytest.mark.parametrize('cb', [lambda base: FocusNetCallback(base), lambda base: StopDiverged()])
def test_a_diverged_training_ends_with_its_epoch(dls, base, cb):
    learn, epochs = make_learner(dls, opt_func=SGD), []
    class NoteEpoch(Callback):
        def before_epoch(self): epochs.append(self.epoch)
    def poison(l):
        if l.epoch == 1: l.opt.set_hyper('lr', 1e20)
    with pytest.raises(DivergedError, match='diverged in epoch 1.*smaller learning rate'), quiet(learn): learn.fit(4, 1e-3, cbs=[cb(base), NoteEpoch(), InBatch(poison)])
    assert epochs == [0, 1] and not learn._grab_cbs(LossTerms)


def test_a_loss_that_is_never_finite(dls, base):
    class Nan(FocusNetCallback):
        def terms(self, pred, y): return {k: v*math.nan if k == 'cls' else v for k, v in super().terms(pred, y).items()}
    learn = make_learner(dls)
    class NoStep(Callback):
        def before_step(self): raise CancelStepException
    with pytest.raises(DivergedError, match='epoch 0: The loss was never finite'), quiet(learn): learn.fit(2, cbs=[Nan(base), NoStep()])


def test_one_infinite_loss_is_no_catastrophe(dls, base):
    "As when mixed precision skips a step"
    class Once(FocusNetCallback):
        def terms(self, pred, y): return {k: v*(math.inf if self.iter == 1 else 1) for k, v in super().terms(pred, y).items()}
    class Skip(Callback):
        def before_step(self):
            if self.iter == 1: raise CancelStepException
    learn = make_learner(dls)
    with quiet(learn): learn.fit(1, cbs=[Once(base), Skip()])
