"DropMax, BYOT and ONE: golden values, sizes, which part learns from which term, and what is left afterwards."
import math, subprocess, sys
from functools import partial
import pytest, torch, torch.nn.functional as F
from torch import nn
from torchvision.models import resnet18
from fastai.vision.all import L, Learner, OptimWrapper, SGD, params, set_seed

from helpers.learners import InBatch, make_learner, n_params, quiet, same, small, state
from helpers.methods import tiny_resnet
from focusnet_fastai.see.cam import class_maps
from focusnet_fastai.methods.byot import BYOT, BYOTNetwork, feature_distance, ShallowExit
from focusnet_fastai.methods.distil import softened_kl
from focusnet_fastai.methods.dropmax import (binary_kl, DropMax, dropmax_terms, DropMaxHead, DropMaxNetwork, log_retain, mask_logits, with_head)
from focusnet_fastai.methods.one import fresh_copy, ONE, ONENetwork, ramp_up
from focusnet_fastai.methods.stages import training_complexity
from focusnet_fastai.methods.views import SLA
from focusnet_fastai.models import complexity, half_mobilenet_v2, lenet5, small_resnet18, small_resnet34

double = partial(torch.tensor, dtype=torch.float64)
z, zt, t = double([[2., .5, -1., .1]]), double([[1., 1.5, -.5, .2]]), torch.tensor([0])
ph, rh, u = double([[.3, -.2, .1, .5]]), double([[.4, .1, -.3, -.6]]), double([[.2, .7, .4, .9]])
half_mobilenet_v2_small = partial(half_mobilenet_v2, small=True)
NETS = dict(small_resnet18=small_resnet18, resnet18=lambda n: resnet18(num_classes=n), small_resnet34=small_resnet34,
            half_mobilenet_v2=half_mobilenet_v2, half_mobilenet_v2_small=half_mobilenet_v2_small, tiny=partial(tiny_resnet, n_in=3))
every_net = pytest.mark.parametrize('make', NETS.values(), ids=list(NETS))
METHODS = dict(dropmax=DropMax, byot=BYOT, one=ONE)
every_method = pytest.mark.parametrize('cls', METHODS.values(), ids=list(METHODS))


@pytest.fixture(scope='module')
def data(): return small()


def tiny_learner(data, **kw): return make_learner(data, model=tiny_resnet(), **kw)


def draws(B=5, N=7, seed=0):
    g = torch.Generator().manual_seed(seed)
    r = lambda: torch.randn(B, N, generator=g, dtype=torch.float64)
    return 2*r(), r(), r(), torch.randint(N, (B,), generator=g), torch.rand(B, N, generator=g, dtype=torch.float64)


def learners(model, terms, k):
    "Names of the parameters that the term trains"
    model.zero_grad(set_to_none=True)
    terms[k].mean().backward(retain_graph=True)
    return {n for n, p in model.named_parameters() if p.grad is not None and bool(p.grad.any())}


# --- DropMax ------------------------------------------------------------------------------------------------------------------

def test_dropmax_golden():
    m = mask_logits(ph, rh, u).sigmoid()[0, 1:].tolist()
    assert m == pytest.approx([.999432, .002341, 1.], abs=6e-7)
    want = dict(cent=.316771, kl=.611475, aux=2.249255, neg_entropy=-2.724941)
    for dtype, tol in ((torch.float64, 6e-7), (torch.float32, 2e-6)):
        got = dropmax_terms(*[o.to(dtype) for o in (z, ph, rh)], t, u.to(dtype))
        assert {k: v.item() for k, v in got.items()} == {k: pytest.approx(v, abs=tol) for k, v in want.items()}
    probs = (z + log_retain(ph)).softmax(1)[0].tolist()
    assert probs == pytest.approx([.723365, .126486, .032913, .117236], abs=6e-7)
    assert DropMax().weights == dict(cent=1., kl=1., aux=1., neg_entropy=1.) and DropMax().tau == .1


def test_dropmax_by_hand():
    "With exponentials and plain logarithms, image by image"
    o, a, b, y, draw = draws()
    got, sig = dropmax_terms(o, a, b, y, draw), lambda x: 1/(1+math.exp(-x))
    for i in range(len(o)):
        p, r, q = [[sig(x) for x in v] for v in (a[i], b[i], a[i]+b[i])]
        m = [sig((math.log(qn/(1-qn)) + math.log(un/(1-un)))/.1) for qn, un in zip(q, draw[i].tolist())]
        m[y[i]], N = 1., range(7)
        others = [n for n in N if n != y[i]]
        assert got['cent'][i].item() == pytest.approx(-math.log(m[y[i]]*math.exp(o[i, y[i]])/sum(m[n]*math.exp(o[i, n]) for n in N)), abs=1e-9)
        kl = sum(q[n]*math.log(q[n]/p[n]) + (1-q[n])*math.log((1-q[n])/(1-p[n])) for n in others) - math.log(p[y[i]])
        assert got['kl'][i].item() == pytest.approx(kl, abs=1e-9)
        assert got['aux'][i].item() == pytest.approx(-math.log(r[y[i]]) - sum(math.log(1-r[n]) for n in others), abs=1e-9)
        assert got['neg_entropy'][i].item() == pytest.approx(sum(p[n]*math.log(p[n]) + (1-p[n])*math.log(1-p[n]) for n in N), abs=1e-9)


def test_dropmax_target_is_never_dropped():
    "Whatever is drawn for it, the mask of the label's own class is exactly 1"
    o, a, b, y, draw = draws()
    want = dropmax_terms(o, a, b, y, draw)['cent']
    for v in (0., 1e-3, 1-1e-9):
        other = draw.scatter(1, y[:, None], v)
        assert torch.allclose(dropmax_terms(o, a, b, y, other)['cent'], want, rtol=0, atol=1e-12)
    all_out = dropmax_terms(o, a-100, b-100, y, draw)['cent']
    assert torch.allclose(all_out, torch.zeros_like(all_out), atol=1e-12)


def test_dropmax_labels_as_probabilities():
    o, a, b, y, draw = draws()
    y1, one = (y+2) % 7, lambda k: F.one_hot(k, 7).double()
    hard, hard1, soft = [dropmax_terms(o, a, b, k, draw) for k in (y, y1, .3*one(y)+.7*one(y1))]
    for k in hard: assert torch.allclose(soft[k], .3*hard[k] + .7*hard1[k])


def test_dropmax_mask_is_q_on_average():
    torch.manual_seed(0)
    q = (ph + rh).sigmoid()
    m = mask_logits(ph, rh, torch.rand(20000, 4, dtype=torch.float64)).sigmoid()
    assert torch.allclose((m > .5).double().mean(0), q[0], atol=.015)
    assert ((m < .05) | (m > .95)).double().mean() > .8


def test_dropmax_routes():
    "No gradient from cent into the retain head; that one learns from kl and neg_entropy, and all heads train the trunk"
    net = DropMaxNetwork(tiny_resnet(), 10).train()
    x, y = torch.randn(6, 1, 16, 16), torch.arange(6)
    method = DropMax()
    method.outputs = net(x)
    terms = method.terms(method.outputs[0], y)
    own = lambda names: {n.split('.')[0] if not n.startswith('net.') else 'head' if n.startswith('net.9') else 'trunk' for n in names}
    assert {k: own(learners(net, terms, k)) for k in terms} == dict(
        cent={'trunk', 'head', 'aux'}, kl={'trunk', 'retain', 'aux'}, aux={'trunk', 'aux'}, neg_entropy={'trunk', 'retain'})


def test_dropmax_posterior_is_a_constant_for_the_retain_head():
    "ph inside q has no gradient: that of kl is p-q, for the label's own class p-1"
    _, a, b, y, draw = draws()
    a.requires_grad_()
    dropmax_terms(a.detach(), a, b, y, draw)['kl'].sum().backward()
    p, q = a.detach().sigmoid(), (a.detach()+b).sigmoid()
    assert torch.allclose(a.grad, p - q.scatter(1, y[:, None], 1.))


def test_dropmax_does_not_overflow():
    for scale in (1e2, 1e4):
        big = [(scale*o).float().requires_grad_() for o in (z, ph, rh)]
        for draw in (torch.zeros(1, 4), torch.full((1, 4), 1-2**-24), u.float()):
            loss = sum(v.sum() for v in dropmax_terms(*big, torch.tensor([2]), draw).values())
            assert loss.isfinite() and all(g.isfinite().all() for g in torch.autograd.grad(loss, big))
    for dtype in (torch.float16, torch.bfloat16): assert log_retain(torch.full((1,), -1000., dtype=dtype)).item() == pytest.approx(math.log(1e-20))
    x = torch.full((1,), -1000., requires_grad=True)
    assert torch.autograd.grad(log_retain(x), x)[0].isfinite()
    a = double([-800., -3., 0., 5., 800.])
    assert (binary_kl(a, a) == 0).all() and (binary_kl(a, a.flip(0)) >= 0).all()


def test_dropmax_per_class():
    o, a, b, y, _ = draws()
    got = []
    for per_class in (False, True):
        method = DropMax(per_class=per_class)
        method.outputs = o, a, b
        torch.manual_seed(0)
        got.append(method.terms(o, y))
    for k, v in got[0].items(): assert torch.allclose(got[1][k], v if k == 'cent' else v/7)
    assert DropMax().lower_bound(200) == pytest.approx(-138.63, abs=.01) and DropMax(per_class=True).lower_bound(200) == pytest.approx(-math.log(2))
    start = dropmax_terms(*[torch.zeros(1, 200)]*3, t, torch.full((1, 200), .5))
    assert start['aux'].item() == pytest.approx(138.63, abs=.01) and start['neg_entropy'].item() == pytest.approx(-138.63, abs=.01)


def test_dropmax_sizes():
    net = small_resnet18(200)
    wrapped = DropMaxNetwork(net, 200)
    assert n_params(wrapped) == 11_476_632 and n_params(wrapped.deployed) == 11_374_032 and n_params(net) == 11_271_432
    assert training_complexity(wrapped, 64).flops == complexity(net, 64).flops + 4*512*200
    assert complexity(wrapped.deployed, 64) == (11_374_032, complexity(net, 64).flops + 2*512*200)


@pytest.mark.parametrize('make,n_in', [(small_resnet18, 3), (half_mobilenet_v2_small, 3), (lenet5, 1)])
def test_dropmax_deployed_network(make, n_in):
    "The plain network's class and layers, another head; the plain network itself stays as it is"
    net, x = make(10), torch.randn(2, n_in, 32, 32)
    kinds = [type(m) for m in net.modules()]
    wrapped = DropMaxNetwork(net, 10).eval()
    dep = wrapped.deployed
    with torch.no_grad():
        o, a, _ = wrapped.train_outputs(x)
        assert torch.allclose(dep(x), o + (a.sigmoid()+1e-20).log(), atol=1e-6) and torch.equal(dep(x), wrapped(x)) and torch.equal(net(x), o)
    assert type(dep) is type(net) and [type(m) for m in net.modules()] == kinds
    assert {p.data_ptr() for p in net.parameters()} < {p.data_ptr() for p in dep.parameters()}
    assert sum(isinstance(m, DropMaxHead) for m in dep.modules()) == 1


def test_with_head_of_a_network_that_is_its_head():
    head = nn.Identity()
    assert with_head(nn.Linear(2, 2), '', head) is head


def test_dropmax_evaluation_is_deterministic(data):
    learn2 = DropMax.wrap(make_learner(data))
    with quiet(learn2): learn2.fit(1, 3e-3)
    row = list(learn2.recorder.values[-1][1:3])
    assert list(learn2.validate()) == list(learn2.validate()) == pytest.approx(row, abs=1e-6)
    plain, x = learn2.unwrap(), torch.randn(2, 1, 32, 32)
    assert list(plain.validate()) == pytest.approx(row, abs=1e-6)
    rng = torch.get_rng_state()
    for m in (plain.model.eval(), learn2.model.eval()): assert torch.equal(m(x), m(x))
    assert torch.equal(rng, torch.get_rng_state())


def test_dropmax_goes_on(data):
    "Unwrapped, it trains plainly or with DropMax again, whose heads are taken up; other wrappers refuse it"
    split = lambda m: L(m[:9], m[9:]).map(params)
    learn2 = DropMax.wrap(tiny_learner(data, splitter=split))
    with quiet(learn2): learn2.fit(1, 3e-3)
    plain, x = learn2.unwrap(), torch.randn(4, 1, 32, 32)
    again = DropMax.wrap(plain)
    assert again.model.retain is learn2.model.retain and again.model.head is learn2.model.head
    with torch.no_grad(): assert torch.equal(again.model.eval()(x), plain.model.eval()(x))
    with quiet(again): again.fit(1, 1e-3)
    with quiet(plain): plain.fit(1, 1e-3)
    assert len(plain.opt.param_lists) == 2 and len(plain.opt.param_lists[1]) == 4
    with pytest.raises(ValueError, match='not that of its Linear layer'), quiet(s := SLA.wrap(plain)): s.fit(1)
    with pytest.raises(ValueError, match='is not that of a Linear layer'): class_maps(plain.model, x)


def test_dropmax_heads_are_not_decayed(data, tmp_path):
    learn2 = DropMax.wrap(make_learner(data, opt_func=SGD, wd=.5, path=tmp_path))
    learn2.create_opt()
    def decay():
        before = state(learn2.model)
        for p in learn2.model.parameters(): p.grad = torch.zeros_like(p)
        learn2.opt.set_hypers(lr=.1, wd=.5)
        learn2.opt.step()
        return {k for k, p in learn2.model.named_parameters() if not torch.equal(before[k], p)}
    want = {n for n, _ in learn2.model.named_parameters() if n.startswith('net.') and n.endswith('weight')}
    assert decay() == want
    learn2.opt.clear_state()
    assert decay() == want
    learn2.save('ckpt')
    learn2.create_opt(); learn2.load('ckpt')
    assert decay() == want
    plain_opt = partial(OptimWrapper, opt=torch.optim.SGD)
    with pytest.warns(UserWarning, match="DropMax's extra parts get the weight decay"): DropMax.wrap(make_learner(data, opt_func=plain_opt, wd=.1)).create_opt()


def test_dropmax_in_a_fresh_process(data, tmp_path):
    learn2 = DropMax.wrap(make_learner(data, path=tmp_path))
    with quiet(learn2): learn2.fit(1, 3e-3)
    learn2.export('m.pkl')
    x = data.valid_ds[3][0]
    torch.save(x, tmp_path/'x.pt')
    code = ("import torch; from fastai.vision.all import load_learner; l = load_learner('m.pkl'); "
            "print(sum(p.numel() for p in l.model.parameters()), *l.predict(torch.load('x.pt', weights_only=False))[2].tolist())")
    out = subprocess.run([sys.executable, '-W', 'ignore', '-c', code], capture_output=True, text=True, timeout=200, cwd=tmp_path)
    assert out.returncode == 0, out.stderr[-2000:]
    n, *probs = out.stdout.split('\n')[-2].split()[-11:]
    assert int(n) == n_params(lenet5(10)) + 85*10 and [float(p) for p in probs] == pytest.approx(learn2.unwrap().predict(x)[2].tolist(), abs=1e-5)


# --- BYOT ---------------------------------------------------------------------------------------------------------------------

def test_byot_sizes():
    net = small_resnet18(200)
    wrapped = BYOTNetwork(net, 200, adapters=False)
    c = training_complexity(wrapped, 64)
    assert c.params == 12_488_544 and c.flops/1e9 == pytest.approx(4.656, abs=5e-4)
    assert n_params(BYOTNetwork(net, 200)) == 12_488_544 + 2*(512*512+512)
    assert n_params(net) == 11_271_432 and n_params(BYOT(feature=0.).network(net, 200)) == 12_488_544
    assert n_params(ShallowExit([256, 512], 200)) == 2*256**2+24*256 + 3*256**2+24*256 + 513*200


def test_byot_by_hand():
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


def test_byot_teacher_is_detached():
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


def test_byot_features_of_one_width():
    with pytest.raises(ValueError, match='MobileNetV2 have 160, its head reads 1280'): BYOT(squares=True).network(half_mobilenet_v2(10), 10)
    assert not len(BYOT(squares=True).network(small_resnet18(10), 10).adapters)
    assert len(BYOTNetwork(tiny_resnet(), 10)(torch.randn(2, 1, 33, 47))) == 4


# --- ONE ----------------------------------------------------------------------------------------------------------------------

def test_one_sizes():
    net = small_resnet18(200)
    wrapped = ONENetwork(net, 200)
    c = training_complexity(wrapped, 64)
    assert c.params == 28_264_865 and c.flops/1e9 == pytest.approx(6.59, abs=5e-3) and complexity(wrapped, 64).flops == complexity(net, 64).flops
    assert n_params(ONENetwork(net, 200, 2)) == 11_271_432 + n_params(net.layer4) + n_params(net.fc) + 257*2 + 4


def test_one_by_hand():
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


def test_one_ramp(data):
    assert [ramp_up(e, 80) for e in (0, 20, 40, 60, 80, 299)] == pytest.approx([.0067, .060, .2865, .732, 1, 1], abs=5e-4)
    assert ramp_up(0, 0) == 1 and ONE().ramped(40, 300) == pytest.approx(math.exp(-1.25))
    learn2, seen = ONE.wrap(tiny_learner(data), ramp=.5), {}
    look = lambda l: seen.setdefault(l.epoch, l.one.term_values[3].item()/sum(softened_kl(l.one.outputs[2], o, 3) for o in [l.pred, *l.one.outputs[1]]).mean().item())
    with quiet(learn2): learn2.fit(4, 1e-3, cbs=InBatch(look))
    assert seen == {e: pytest.approx(ramp_up(e, 2), rel=1e-3) for e in range(4)}


def test_one_gate():
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


def test_one_branches_differ():
    net = ONENetwork(small_resnet18(10), 10)
    w = [net.stages.parts[3][0][0].conv1.weight, *[b[0][0][0].conv1.weight for b in net.branches]]
    for i in range(3):
        assert w[i].std().item() == pytest.approx(w[0].std().item(), rel=.05)
        assert not any(torch.allclose(w[i], w[j], atol=1e-3) for j in range(i))
    old = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 3))
    old[0].running_mean.fill_(5); old[0].weight.data.fill_(2)
    new = fresh_copy(old)
    assert new[0].running_mean.eq(0).all() and new[0].weight.eq(1).all() and not torch.equal(new[1].weight, old[1].weight) and old[0].weight.eq(2).all()


# --- all three ------------------------------------------------------------------------------------------------------------

@every_net
@every_method
def test_every_parameter_learns(cls, make):
    "On every network; and in eval mode, the network is the plain one"
    torch.manual_seed(0)
    net, m = make(7), cls()
    wrapped = m.network(net, 7).train()
    x, y = torch.randn(4, 3, 32, 32), torch.tensor([0, 3, 6, 1])
    m.outputs, m.epoch, m.n_epoch = wrapped(x), 1, 2
    terms = m.terms(m.outputs[0].float(), y)
    sum(w*terms[k].mean() for k, w in m.weights.items()).backward()
    assert [n for n, p in wrapped.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []
    with torch.no_grad():
        z = wrapped.eval()(x)
        assert z.shape == (4, 7) and torch.equal(z, wrapped(x)) and torch.equal(z, m.deployed(wrapped)(x))
        if cls is not DropMax: assert torch.equal(z, net(x)) and m.deployed(wrapped) is net


@every_method
def test_wrap_is_one_call_each_way(data, cls):
    learn = tiny_learner(data)
    net, before = learn.model, state(learn.model)
    learn2 = cls.wrap(learn)
    extra = {n: p.clone() for n, p in learn2.model.named_parameters() if not n.startswith('net.')}
    with quiet(learn2): learn2.fit(1, 3e-3)
    assert all(not torch.equal(extra[n], p) for n, p in learn2.model.named_parameters() if n in extra) and not same(before, state(net))
    got = learn2.unwrap()
    assert got is learn and type(got) is Learner
    assert list(got.validate()) == pytest.approx(list(learn2.validate()), abs=1e-6)
    if cls is DropMax: assert n_params(got.model) == n_params(net) + n_params(net[-1])
    else: assert got.model is net and set(state(net)) == set(before)


@every_method
def test_resume(data, cls, tmp_path):
    "Saved after an epoch and loaded into a newly wrapped learner, the next epoch is the same"
    def second(learn2):
        set_seed(3)
        data.train.rng.seed(3)
        with quiet(learn2): learn2.fit(1, 3e-3)
        return state(learn2.model)
    learn2 = cls.wrap(tiny_learner(data, path=tmp_path))
    with quiet(learn2): learn2.fit(1, 3e-3)
    learn2.save('ckpt')
    again = cls.wrap(tiny_learner(data, seed=5, path=tmp_path))
    assert not same(state(again.model), state(learn2.model))
    again.create_opt()
    again.load('ckpt')
    assert same(second(again), second(learn2))


@every_method
def test_networks_that_do_not_fit(data, cls):
    other = nn.Sequential(nn.Flatten(), nn.Linear(1024, 10), nn.Softmax(1)) if cls is DropMax else lenet5(10)
    with pytest.raises(ValueError, match='Linear layer|four'), quiet(learn2 := cls.wrap(make_learner(data, model=other))): learn2.fit(1)
    with pytest.raises(ValueError, match=rf'learn2 = {cls.__name__}.wrap\(learn\)'), quiet(learn := tiny_learner(data)): learn.fit(1, cbs=cls())


@pytest.mark.parametrize('make,words', [
    (lambda: DropMax(tau=0), '`tau`'), (lambda: DropMax(aux=-1), '`aux`'), (lambda: BYOT(alpha=1.5), '`alpha`'), (lambda: BYOT(T=0), '`T`'),
    (lambda: BYOT(feature=-1), '`feature`'), (lambda: ONE(T=0), '`T`'), (lambda: ONE(ramp=80), '`ramp`'), (lambda: ONE(branches=1), '`branches`')])
def test_bad_numbers_are_named(make, words):
    with pytest.raises(ValueError, match=words): make()
