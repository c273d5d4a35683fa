"Distillation: values, weights, and what a teacher may not get."
import copy, math
import pytest, torch, torch.nn.functional as F
from torch import nn
from fastai.callback.mixup import MixUp

from helpers.learners import InBatch, make_learner, quiet, same, small, state
from helpers.methods import method_of
from focusnet_fastai.loss import cross_entropies
from focusnet_fastai.methods.distil import KD, softened_kl, TfKD, TfKDReg, virtual_teacher
from focusnet_fastai.methods.regularise import LabelSmoothing

z = torch.tensor([[2., .5, -1., .1]], dtype=torch.float64)
zt = torch.tensor([[1., 1.5, -.5, .2]], dtype=torch.float64)
t = torch.tensor([0])


@pytest.fixture(scope='module')
def data(): return small(n_train=64, bs=16)


def total(cb, **attrs):
    for k, v in attrs.items(): setattr(cb, k, v)
    terms = cb.terms(z, t)
    return sum(w*terms[k] for k, w in cb.weights.items()).item()


@pytest.mark.parametrize('T,kl', [(1, .394535), (3, .326977), (4, .314056), (6, .300373), (20, .280184)])
def test_golden_distillation(T, kl):
    "The terms have six known decimals; the sums of them, whose weights enlarge the rounding, are checked against the terms"
    kd, ce = softened_kl(zt, z, T).item(), cross_entropies(z, t).item()
    assert kd == pytest.approx(kl, abs=6e-7) and ce == pytest.approx(.352406, abs=6e-7)
    for alpha in (.9, 1.):
        assert total(KD(nn.Identity(), alpha, T), baseline_logits=zt) == pytest.approx((1-alpha)*ce + alpha*kd, abs=1e-12)
    assert total(KD(nn.Identity(), 1., T, cls_weight=1.), baseline_logits=zt) == pytest.approx(ce + kd, abs=1e-12)
    assert total(TfKD(nn.Identity(), T=T), baseline_logits=zt) == pytest.approx(.05*ce + .95*.5*kd, abs=1e-12)


@pytest.mark.parametrize('cb,want', [(TfKDReg(), .9*.352406+.1*.546368), (TfKDReg(.95, multiplier=.01), .05*.352406+.95*.01*.546368)])
def test_golden_values_without_a_teacher(cb, want): assert total(cb) == pytest.approx(want, abs=1e-6)


def test_default_weights():
    assert KD(nn.Identity()).weights == dict(cls=pytest.approx(.1), kd=.9) and KD(nn.Identity()).T == 4
    assert TfKD(nn.Identity()).alpha*TfKD(nn.Identity()).multiplier*36 == pytest.approx(17.1)


def test_kl_is_batchmean_of_pytorch():
    a, b = torch.randn(5, 7), torch.randn(5, 7)
    want = 16*F.kl_div((b/4).log_softmax(1), (a/4).softmax(1), reduction='batchmean')
    assert softened_kl(a, b, 4).mean().item() == pytest.approx(want.item(), rel=1e-5)


def test_virtual_teacher():
    u = virtual_teacher(t, 4)[0].tolist()
    assert u == pytest.approx([.259364, .246879, .246879, .246879], abs=1e-6)
    for T, true, rest in ((20, .010502, .009995), (40, .010248, None)):
        u = virtual_teacher(torch.tensor([3]), 100, T)[0]
        assert u[3].item() == pytest.approx(true, abs=1e-6) and u.sum().item() == pytest.approx(1, abs=1e-5)
        if rest: assert u[0].item() == pytest.approx(rest, abs=1e-6)
    soft = virtual_teacher(torch.tensor([[.3, .7]]), 2)
    assert torch.allclose(soft, .3*virtual_teacher(torch.tensor([0]), 2) + .7*virtual_teacher(torch.tensor([1]), 2))


def test_no_gradient_to_a_teacher():
    teacher, student = zt.clone().requires_grad_(), z.clone().requires_grad_()
    softened_kl(teacher, student).sum().backward()
    assert teacher.grad is None
    assert torch.allclose(student.grad, 4*((z/4).softmax(1) - (zt/4).softmax(1)))


def test_mixup_is_the_blend(data, base):
    "Label smoothing and KD, by hand"
    for make, want in ((lambda: LabelSmoothing(), lambda z, y, zb: F.cross_entropy(z, y, label_smoothing=.1, reduction='none')),
                       (lambda: KD(base), lambda z, y, zb: .1*F.cross_entropy(z, y, reduction='none') + .9*softened_kl(zb, z))):
        learn, seen, handler = make_learner(data), [], MixUp()
        def look(l):
            zb = method_of(l).baseline_logits
            a, b = [want(l.pred.detach(), y, zb) for y in (l.y, handler.yb1[0])]
            seen.append((l.loss.item(), (handler.lam*a + (1-handler.lam)*b).mean().item()))
        with quiet(learn): learn.fit(1, 1e-3, cbs=[handler, make(), InBatch(look)])
        assert len(seen) == 4 and all(a == pytest.approx(b, abs=1e-5) for a, b in seen)


def test_baseline_stays(data, base):
    for cb in (KD(base), TfKD(base)):
        learn = make_learner(data)
        with quiet(learn): learn.fit(1, 1e-3, cbs=cb)  # the fixture `base` compares at the end
    with pytest.raises(ValueError, match='own baseline'), quiet(learn): learn.fit(1, cbs=KD(learn))


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64])
def test_teachers_of_another_precision(data, base, dtype):
    "Asked in its own precision; the terms are float32 all the same"
    teacher, seen = copy.deepcopy(base.model).to(dtype), []
    learn = make_learner(data)
    def look(l): seen.append((l.kd.baseline_logits.isfinite().all().item(), l.kd.term_values.dtype, next(l.kd.frozen.parameters()).dtype))
    with quiet(learn): learn.fit(1, 1e-3, cbs=[KD(teacher), InBatch(look)])
    assert len(seen) == 4 and {o[0] for o in seen} == {True} and {o[2] for o in seen} == {dtype}
    assert all(math.isfinite(v) for v in learn.recorder.values[-1])


@pytest.mark.parametrize('cls', [KD, TfKD])
def test_diverged_teachers_are_refused(data, base, cls):
    "Before the first step"
    teacher = copy.deepcopy(base.model)
    torch.nn.init.constant_(teacher[-1].weight, math.nan)
    learn = make_learner(data)
    before = state(learn.model)
    with pytest.raises(ValueError, match="baseline's logits are not finite.*first batch"), quiet(learn): learn.fit(1, cbs=cls(teacher))
    assert same(before, state(learn.model))
