"BYOT: sizes, values, which exit learns from what."
from functools import partial
import pytest, torch, torch.nn.functional as F
from torch import nn

from helpers.learners import n_params
from helpers.methods import learners, tiny_resnet
from focusnet_fastai.methods.byot import BYOT, BYOTNetwork, feature_distance, ShallowExit
from focusnet_fastai.methods.distil import softened_kl
from focusnet_fastai.methods.stages import training_complexity
from focusnet_fastai.models import half_mobilenet_v2, small_resnet18

double = partial(torch.tensor, dtype=torch.float64)
z, zt, t = double([[2., .5, -1., .1]]), double([[1., 1.5, -.5, .2]]), torch.tensor([0])


def test_sizes():
    net = small_resnet18(200)
    wrapped = BYOTNetwork(net, 200, adapters=False)
    c = training_complexity(wrapped, 64)
    assert c.params == 12_488_544 and c.flops/1e9 == pytest.approx(4.656, abs=5e-4)
    assert n_params(BYOTNetwork(net, 200)) == 12_488_544 + 2*(512*512+512)
    assert n_params(net) == 11_271_432 and n_params(BYOT(feature=0.).network(net, 200)) == 12_488_544
    assert n_params(ShallowExit([256, 512], 200)) == 2*256**2+24*256 + 3*256**2+24*256 + 513*200


def test_by_hand():
    torch.manual_seed(0)
    B, N, D, y = 4, 5, 6, torch.tensor([0, 4, 2, 2])
    pred, h, logits, features = torch.randn(B, N), torch.randn(B, D), [torch.randn(B, N) for _ in range(3)], [torch.randn(B, D) for _ in range(2)]
    def total(**kw):
        m = BYOT(**kw)
        m.outputs = pred, h, logits, features
        terms = m.terms(pred, y)
        return sum(w*terms[k].mean() for k, w in m.weights.items()).item()
    ce, p = F.cross_entropy, (pred/3).softmax(1)
    entropy = -(p*p.log()).sum(1).mean()
    soft = [-(p*(o/3).log_softmax(1)).sum(1).mean() for o in logits]
    # the journal code has cross-entropy with soft labels, which is the divergence plus the teacher's entropy
    want = ce(pred, y) + sum(.7*ce(o, y) + .3*(s-entropy) for o, s in zip(logits, soft)) + .03*sum(((f-h)**2).sum().sqrt() for f in features)
    assert total() == pytest.approx(want.item(), abs=1e-5)
    want = .9*(ce(pred, y) + sum(ce(o, y) for o in logits)) + .1*9*sum(s-entropy for s in soft) \
        + 1e-6*sum(((f-h)[(f > 0) | (h > 0)]**2).sum() for f in features)
    assert total(alpha=.1, feature=1e-6, cls_weight=.9, t_squared=True, squares=True) == pytest.approx(want.item(), abs=1e-5)
    assert total(alpha=0., feature=0.) == pytest.approx((ce(pred, y) + sum(ce(o, y) for o in logits)).item(), abs=1e-5)
    m = BYOT(t_squared=True)
    m.outputs = z, torch.zeros(1, 2), [zt]*3, []
    assert m.terms(z, t)['kd'].item() == pytest.approx(3*softened_kl(z, zt, 3).item())


def test_teacher_is_detached():
    "Only its own cross-entropy trains the last stage and the head; the exits' losses train the stages before them"
    net = BYOTNetwork(tiny_resnet(), 10).train()
    x, y = torch.randn(6, 1, 32, 32), torch.arange(6)
    m = BYOT()
    m.outputs = net(x)
    terms = m.terms(m.outputs[0], y)
    own = lambda names: {n.split('.')[0] if not n.startswith('net.') else 'last' if n.split('.')[1] in '69' else 'stages' for n in names}
    assert {k: own(learners(net, terms, k)) for k in terms} == dict(
        cls={'stages', 'last'}, shallow={'stages', 'exits'}, kd={'stages', 'exits'}, feature={'stages', 'exits', 'adapters'})
    assert not any(n.startswith(('exits.2', 'net.5')) for n in learners(net, terms, 'feature'))
    assert feature_distance(torch.ones(2, 3), [torch.ones(2, 3).requires_grad_()]).item() == 0


def test_features_of_one_width():
    with pytest.raises(ValueError, match='MobileNetV2 have 160, its head reads 1280'): BYOT(squares=True).network(half_mobilenet_v2(10), 10)
    assert not len(BYOT(squares=True).network(small_resnet18(10), 10).adapters)
    assert len(BYOTNetwork(tiny_resnet(), 10)(torch.randn(2, 1, 33, 47))) == 4
