"ONE: sizes, values, the ramp, the gate, and branches that differ."
import math
import pytest, torch, torch.nn.functional as F
from torch import nn

from helpers.learners import InBatch, make_learner, n_params, quiet, small
from helpers.methods import learners, tiny_resnet
from focusnet_fastai.methods.distil import softened_kl
from focusnet_fastai.methods.one import fresh_copy, ONE, ONENetwork, ramp_up
from focusnet_fastai.methods.stages import training_complexity
from focusnet_fastai.models import complexity, small_resnet18


@pytest.fixture(scope='module')
def data(): return small(n_train=64, bs=16)


def tiny_learner(data, **kw): return make_learner(data, model=tiny_resnet(), **kw)


def test_sizes():
    net = small_resnet18(200)
    wrapped = ONENetwork(net, 200)
    c = training_complexity(wrapped, 64)
    assert c.params == 28_264_865 and c.flops/1e9 == pytest.approx(6.59, abs=5e-3) and complexity(wrapped, 64).flops == complexity(net, 64).flops
    assert n_params(ONENetwork(net, 200, 2)) == 11_271_432 + n_params(net.layer4) + n_params(net.fc) + 257*2 + 4


def test_by_hand():
    torch.manual_seed(0)
    N, y = 5, torch.tensor([0, 4, 2])
    zs = [torch.randn(3, N) for _ in range(3)]
    ze, ce = (.2*zs[0] + .5*zs[1] + .3*zs[2]), F.cross_entropy
    m = ONE()
    m.outputs, m.epoch, m.n_epoch = (zs[0], zs[1:], ze), 40, 300
    terms = m.terms(zs[0], y)
    kl = lambda o: 9*F.kl_div((o/3).log_softmax(1), (ze/3).softmax(1), reduction='batchmean')
    want = sum(ce(o, y) for o in zs) + ce(ze, y) + math.exp(-1.25)*sum(kl(o) for o in zs)
    assert sum(w*terms[k].mean() for k, w in m.weights.items()).item() == pytest.approx(want.item(), abs=1e-5)


def test_ramp(data):
    assert [ramp_up(e, 80) for e in (0, 20, 40, 60, 80, 299)] == pytest.approx([.0067, .060, .2865, .732, 1, 1], abs=5e-4)
    assert ramp_up(0, 0) == 1 and ONE().ramped(40, 300) == pytest.approx(math.exp(-1.25))
    learn2, seen = ONE.wrap(tiny_learner(data), ramp=.5), {}
    look = lambda l: seen.setdefault(l.epoch, l.one.term_values[3].item()/sum(softened_kl(l.one.outputs[2], o, 3) for o in [l.pred, *l.one.outputs[1]]).mean().item())
    with quiet(learn2): learn2.fit(4, 1e-3, cbs=InBatch(look))
    assert seen == {e: pytest.approx(ramp_up(e, 2), rel=1e-3) for e in range(4)}


def test_gate():
    "The divergence trains the branches only; gate and ensemble learn from the ensemble's cross-entropy"
    net = ONENetwork(tiny_resnet(), 10).train()
    x, y = torch.randn(6, 1, 32, 32), torch.arange(6)
    m = ONE()
    m.outputs, m.epoch, m.n_epoch = net(x), 40, 300
    terms = m.terms(m.outputs[0], y)
    own = lambda names: {n.split('.')[0] if not n.startswith('net.') else 'own' if n.split('.')[1] in '69' else 'trunk' for n in names}
    assert {k: own(learners(net, terms, k)) for k in terms} == dict(
        cls={'trunk', 'own'}, branches={'trunk', 'branches'}, ensemble={'trunk', 'own', 'branches', 'gate'}, kd={'trunk', 'own', 'branches'})
    s = net.stages
    f = s.forward_features(x)
    g = net.gate(f[2])
    zs = [s.head(s.pool(f[3])), *[b(f[2]) for b in net.branches]]
    assert torch.allclose(g.sum(1), torch.ones(6)) and g.shape == (6, 3)
    for a, b in zip(net(x)[1], zs[1:]): assert torch.allclose(a, b, atol=1e-5)
    assert torch.allclose(net.ensemble(x), (g[..., None]*torch.stack(zs, 1)).sum(1), atol=1e-5)


def test_branches_differ():
    net = ONENetwork(small_resnet18(10), 10)
    w = [net.stages.parts[3][0][0].conv1.weight, *[b[0][0][0].conv1.weight for b in net.branches]]
    for i in range(3):
        assert w[i].std().item() == pytest.approx(w[0].std().item(), rel=.05)
        assert not any(torch.allclose(w[i], w[j], atol=1e-3) for j in range(i))
    old = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 3))
    old[0].running_mean.fill_(5); old[0].weight.data.fill_(2)
    new = fresh_copy(old)
    assert new[0].running_mean.eq(0).all() and new[0].weight.eq(1).all() and not torch.equal(new[1].weight, old[1].weight) and old[0].weight.eq(2).all()
