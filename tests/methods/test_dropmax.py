"DropMax: golden values, what the mask keeps, which head learns from which term, and what is left afterwards."
import math
from functools import partial
import pytest, torch, torch.nn.functional as F
from torch import nn
from fastai.vision.all import L, OptimWrapper, SGD, params

from helpers import fresh
from helpers.learners import make_learner, n_params, quiet, small, state
from helpers.methods import learners, tiny_resnet
from focusnet_fastai.see.cam import class_maps
from focusnet_fastai.methods.dropmax import (binary_kl, DropMax, dropmax_terms, DropMaxHead, DropMaxNetwork, log_retain, mask_logits, with_head)
from focusnet_fastai.methods.stages import training_complexity
from focusnet_fastai.methods.views import SLA
from focusnet_fastai.models import complexity, half_mobilenet_v2, lenet5, small_resnet18

double = partial(torch.tensor, dtype=torch.float64)
z, t = double([[2., .5, -1., .1]]), torch.tensor([0])
ph, rh, u = double([[.3, -.2, .1, .5]]), double([[.4, .1, -.3, -.6]]), double([[.2, .7, .4, .9]])
half_mobilenet_v2_small = partial(half_mobilenet_v2, small=True)


@pytest.fixture(scope='module')
def data(): return small(n_train=64, bs=16)


def tiny_learner(data, **kw): return make_learner(data, model=tiny_resnet(), **kw)


def draws(B=5, N=7, seed=0):
    g = torch.Generator().manual_seed(seed)
    r = lambda: torch.randn(B, N, generator=g, dtype=torch.float64)
    return 2*r(), r(), r(), torch.randint(N, (B,), generator=g), torch.rand(B, N, generator=g, dtype=torch.float64)


def test_golden():
    m = mask_logits(ph, rh, u).sigmoid()[0, 1:].tolist()
    assert m == pytest.approx([.999432, .002341, 1.], abs=6e-7)
    want = dict(cent=.316771, kl=.611475, aux=2.249255, neg_entropy=-2.724941)
    for dtype, tol in ((torch.float64, 6e-7), (torch.float32, 2e-6)):
        got = dropmax_terms(*[o.to(dtype) for o in (z, ph, rh)], t, u.to(dtype))
        assert {k: v.item() for k, v in got.items()} == {k: pytest.approx(v, abs=tol) for k, v in want.items()}
    probs = (z + log_retain(ph)).softmax(1)[0].tolist()
    assert probs == pytest.approx([.723365, .126486, .032913, .117236], abs=6e-7)
    assert DropMax().weights == dict(cent=1., kl=1., aux=1., neg_entropy=1.) and DropMax().tau == .1


def test_by_hand():
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


def test_target_is_never_dropped():
    "Whatever is drawn for it, the mask of the label's own class is exactly 1"
    o, a, b, y, draw = draws()
    want = dropmax_terms(o, a, b, y, draw)['cent']
    for v in (0., 1e-3, 1-1e-9):
        other = draw.scatter(1, y[:, None], v)
        assert torch.allclose(dropmax_terms(o, a, b, y, other)['cent'], want, rtol=0, atol=1e-12)
    all_out = dropmax_terms(o, a-100, b-100, y, draw)['cent']
    assert torch.allclose(all_out, torch.zeros_like(all_out), atol=1e-12)


def test_labels_as_probabilities():
    o, a, b, y, draw = draws()
    y1, one = (y+2) % 7, lambda k: F.one_hot(k, 7).double()
    hard, hard1, soft = [dropmax_terms(o, a, b, k, draw) for k in (y, y1, .3*one(y)+.7*one(y1))]
    for k in hard: assert torch.allclose(soft[k], .3*hard[k] + .7*hard1[k])


def test_mask_is_q_on_average():
    torch.manual_seed(0)
    q = (ph + rh).sigmoid()
    m = mask_logits(ph, rh, torch.rand(20000, 4, dtype=torch.float64)).sigmoid()
    assert torch.allclose((m > .5).double().mean(0), q[0], atol=.015)
    assert ((m < .05) | (m > .95)).double().mean() > .8


def test_routes():
    "No gradient from cent into the retain head; that one learns from kl and neg_entropy, and all heads train the trunk"
    net = DropMaxNetwork(tiny_resnet(), 10).train()
    x, y = torch.randn(6, 1, 16, 16), torch.arange(6)
    method = DropMax()
    method.outputs = net(x)
    terms = method.terms(method.outputs[0], y)
    own = lambda names: {n.split('.')[0] if not n.startswith('net.') else 'head' if n.startswith('net.9') else 'trunk' for n in names}
    assert {k: own(learners(net, terms, k)) for k in terms} == dict(
        cent={'trunk', 'head', 'aux'}, kl={'trunk', 'retain', 'aux'}, aux={'trunk', 'aux'}, neg_entropy={'trunk', 'retain'})


def test_posterior_is_a_constant_for_the_retain_head():
    "ph inside q has no gradient: that of kl is p-q, for the label's own class p-1"
    _, a, b, y, draw = draws()
    a.requires_grad_()
    dropmax_terms(a.detach(), a, b, y, draw)['kl'].sum().backward()
    p, q = a.detach().sigmoid(), (a.detach()+b).sigmoid()
    assert torch.allclose(a.grad, p - q.scatter(1, y[:, None], 1.))


def test_does_not_overflow():
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


def test_per_class():
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


def test_sizes():
    net = small_resnet18(200)
    wrapped = DropMaxNetwork(net, 200)
    assert n_params(wrapped) == 11_476_632 and n_params(wrapped.deployed) == 11_374_032 and n_params(net) == 11_271_432
    assert training_complexity(wrapped, 64).flops == complexity(net, 64).flops + 4*512*200
    assert complexity(wrapped.deployed, 64) == (11_374_032, complexity(net, 64).flops + 2*512*200)


@pytest.mark.parametrize('make,n_in', [(small_resnet18, 3), (half_mobilenet_v2_small, 3), (lenet5, 1)])
def test_deployed_network(make, n_in):
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


def test_evaluation_is_deterministic(data):
    learn2 = DropMax.wrap(make_learner(data))
    with quiet(learn2): learn2.fit(1, 3e-3)
    row = list(learn2.recorder.values[-1][1:3])
    assert list(learn2.validate()) == list(learn2.validate()) == pytest.approx(row, abs=1e-6)
    plain, x = learn2.unwrap(), torch.randn(2, 1, 32, 32)
    assert list(plain.validate()) == pytest.approx(row, abs=1e-6)
    rng = torch.get_rng_state()
    for m in (plain.model.eval(), learn2.model.eval()): assert torch.equal(m(x), m(x))
    assert torch.equal(rng, torch.get_rng_state())


def test_goes_on(data):
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


def test_heads_are_not_decayed(data, tmp_path):
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


@pytest.mark.slow
def test_in_a_fresh_process(data, tmp_path):
    learn2 = DropMax.wrap(make_learner(data, path=tmp_path))
    with quiet(learn2): learn2.fit(1, 3e-3)
    learn2.export('m.pkl')
    x = data.valid_ds[3][0]
    torch.save(x, tmp_path/'x.pt')
    code = ("import torch; from fastai.vision.all import load_learner; l = load_learner('m.pkl'); "
            "print(sum(p.numel() for p in l.model.parameters()), *l.predict(torch.load('x.pt', weights_only=False))[2].tolist())")
    out = fresh.python(code, cwd=tmp_path)
    assert out.returncode == 0, out.stderr[-2000:]
    n, *probs = out.stdout.split('\n')[-2].split()[-11:]
    assert int(n) == n_params(lenet5(10)) + 85*10 and [float(p) for p in probs] == pytest.approx(learn2.unwrap().predict(x)[2].tolist(), abs=1e-5)
