"FocusNet in one training: which reference for whom, what is refused, and what is left of it."
import pytest, torch
from fastai.vision.all import DataLoaders, L, Learner, TfmdDL, accuracy, nn, set_seed, vision_learner

from helpers.learners import CtrlC, InBatch, make_learner, quiet, same, small, state
from focusnet_fastai.focus import FocusClass, FocusEMA, FocusMemory, focus_callback, one_training, regime
from focusnet_fastai.focusnet import FocusNetCallback
from focusnet_fastai.loss import beta_for_confidence, confidence_for_beta, multi_warm_label
from focusnet_fastai.reference import Baseline
from focusnet_fastai.self_memory import Memory, MovingAverage
from focusnet_fastai.self_reference import ClassMemory
from focusnet_fastai.terms import LossTerms


@pytest.fixture(scope='module')
def data(): return small(n_train=64, bs=16)


def tiny(pretrained=False): return nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))


def seen_in(learn, *args, **kwargs):
    "The callback of each fit inside of `focus`, as (reference, beta, rule)"
    seen = []
    def look(l):
        cb = l._grab_cbs(LossTerms)[0]
        if (l.epoch, l.iter) == (0, 0): seen.append((type(cb.baseline), round(cb.beta, 4), cb.rule, getattr(cb.baseline, 'right', None)))
    with quiet(learn): assert learn.focus(*args, cbs=InBatch(look), **kwargs) is learn
    return seen


def test_from_scratch(data):
    "One fit of the learner itself; afterwards the callback is gone"
    learn = make_learner(data)
    before = state(learn.model)
    assert seen_in(learn, 2, 3e-3) == [(ClassMemory, round(beta_for_confidence(.9, 10), 4), 'soft', True)]
    assert not same(before, state(learn.model)) and not learn._grab_cbs(LossTerms) and len(learn.recorder.values) == 2


def test_pretrained(data):
    "`fine_tune`: two fits, without the entropy"
    set_seed(0)
    learn = vision_learner(data, tiny, cut=1, n_in=1, pretrained=False, normalize=False, metrics=accuracy)
    learn.pretrained = True
    learn.freeze()
    assert regime(learn) == 'pretrained' and seen_in(learn, 1, 3e-3) == [(ClassMemory, 0., 'soft', False)]*2


@pytest.mark.parametrize('reference', [Memory, MovingAverage, ClassMemory])
def test_settings_of_ones_own(data, reference):
    assert seen_in(make_learner(data), 1, 3e-3, reference(), beta=.2, rule='released')[0][:3] == (reference, .2, 'released')


def test_regimes():
    "By classes, in one place that may be changed"
    def of(n):
        dls = DataLoaders(TfmdDL([0], bs=1), TfmdDL([0], bs=1))
        dls.c = n
        return regime(Learner(dls, nn.Linear(1, n), loss_func=nn.CrossEntropyLoss()))
    assert [of(n) for n in (2, 20, 21, 1000)] == ['few', 'few', 'many', 'many']
    for name in one_training: assert isinstance(focus_callback(name), FocusNetCallback)


def test_one_training_is_asked_when_called(data, monkeypatch):
    monkeypatch.setitem(one_training, 'few', dict(reference=Memory, alpha=.5, beta=.1, rule='positive'))
    assert seen_in(make_learner(data), 1, 3e-3) == [(Memory, .1, 'positive', None)]


def test_refused(data):
    learn = make_learner(data)
    before = state(learn.model)
    for args, kw, error, message in [
            ((0, 1e-3), {}, ValueError, '`n_epoch` must lie in 1'), ((1, 1e-3, learn), {}, TypeError, 'not Learner: to train against a trained network, call `refocus`'),
            ((1, 1e-3, nn.Linear(1, 1)), {}, TypeError, 'not Linear: to train against'), ((1, 1e-3, Baseline(nn.Linear(1, 1))), {}, TypeError, 'not Baseline: to train'),
            ((1, 1e-3, 'class'), {}, TypeError, 'must be a `Memory`, a `ClassMemory` or a `MovingAverage`, not str$'), ((1, 1e-3), dict(settings='paper'), ValueError, 'choose from few, many'),
            ((1, 1e-3), dict(beta=.1, confidence=.9), ValueError, 'not both'), ((1, 1e-3), dict(confidence=.05), ValueError, 'between chance, 1/10, and 1'),
            ((1, 1e-3), dict(rule='hot'), ValueError, 'warm rule'), ((1, 1e-3), dict(top_k=0), ValueError, '`top_k` must be a whole number'), ((1, 1e-3), dict(alpha=-1), ValueError, '`alpha`')]:
        with quiet(learn), pytest.raises(error, match=message): learn.focus(*args, **kw)
    assert same(before, state(learn.model)) and not learn._grab_cbs(LossTerms)
    learn.add_cb(FocusNetCallback(ClassMemory()))
    with quiet(learn), pytest.raises(ValueError, match='Only one method can set the loss'): learn.focus(1, 1e-3)


def test_ctrl_c(data):
    "The learner stays as far as it came, without the callback, and goes on"
    learn = make_learner(data)
    before = state(learn.model)
    with quiet(learn), pytest.raises(KeyboardInterrupt): learn.focus(2, 3e-3, cbs=CtrlC('after_batch'))
    assert not same(before, state(learn.model)) and not learn._grab_cbs(LossTerms)
    with quiet(learn): learn.focus(1, 3e-3).fit(1, 1e-3)


@pytest.mark.parametrize('make', [FocusClass, FocusMemory, FocusEMA])
def test_methods(data, make):
    "A new reference in each training; wrong settings are told when they are made"
    cb, learn, seen = make(confidence=.8), make_learner(data), []
    for _ in range(2):
        with quiet(learn): learn.fit(2, 3e-3, cbs=cb)
        seen.append(cb.baseline)
    assert seen[0] is not seen[1] and cb.beta == pytest.approx(beta_for_confidence(.8, 10)) and not make.needs_baseline
    for kw, message in [(dict(start=2), '`start`'), (dict(beta=.1, confidence=.9), 'not both'), (dict(ramp=-1), '`ramp`'), (dict(confidence=90), '`confidence` must lie in 0..1')]:
        with pytest.raises(ValueError, match=message): make(**kw)


# --- the numbers of the loss page ---------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('n', [2, 10, 100, 1000])
@pytest.mark.parametrize('p', [.6, .9, .99])
def test_beta_is_where_the_slope_is_zero(n, p):
    "Derivative of CE - beta H along the probability of the true class, by differences in double precision; and back"
    beta = beta_for_confidence(p, n)
    def value(q):
        q = torch.cat([torch.tensor([q], dtype=torch.float64), torch.full((n-1,), (1-q)/(n-1), dtype=torch.float64)])
        return (-q[0].log() + beta*(q*q.log()).sum()).item()
    h = 1e-6
    assert abs(value(p+h)-value(p-h))/(2*h) < 1e-4 and value(p) < min(value(p+.005), value(p-.005))
    assert confidence_for_beta(beta, n) == pytest.approx(p, abs=1e-9)


def test_confidence_at_beta_one():
    assert [round(confidence_for_beta(1, n), 2) for n in (10, 100, 1000)] == [.48, .28, .18] and confidence_for_beta(0, 10) == 1
    assert 1/1000 < confidence_for_beta(1e6, 1000) < .0011
    for p in (0, .1, 1, 2):
        with pytest.raises(ValueError, match='between chance, 1/10, and 1'): beta_for_confidence(p, 10)


@pytest.mark.parametrize('rule', ['positive', 'released', lambda zb: zb > -1])
def test_top_k(rule):
    "The strongest of the warm classes, and the true one; a large k changes nothing"
    torch.manual_seed(0)
    zb, y = torch.randn(200, 12)*2, torch.randint(12, (200,))
    whole, few = multi_warm_label(zb, y, rule) > 0, multi_warm_label(zb, y, rule, 3) > 0
    for z, t, a, b in zip(zb, y.tolist(), whole, few):
        warm = [c for c in a.nonzero()[:, 0].tolist() if c != t or (rule(z[None])[0, c] if callable(rule) else z[c] > 0 if rule == 'positive' else (z/2).softmax(0)[c] > 1/12)]
        assert set(b.nonzero()[:, 0].tolist()) == {t, *sorted(warm, key=lambda c: -z[c])[:3]}
    assert torch.equal(multi_warm_label(zb, y, rule, 12), multi_warm_label(zb, y, rule)) and torch.allclose(multi_warm_label(zb, y, rule, 3).sum(1), torch.ones(200))


def test_top_k_soft():
    zb, y = torch.tensor([[3., 2., 1., 0.]]), torch.tensor([3])
    want = torch.tensor([[3., 2., -torch.inf, 0.]]).softmax(1)
    assert torch.allclose(multi_warm_label(zb, y, 'soft', 2), want)
