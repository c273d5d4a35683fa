"FRSKD, FRSKD\\F and FRSKD with the focus-picking loss: the self-teacher, values, gradients, a loop by hand."
import copy
from functools import partial
import pytest, torch, torch.nn.functional as F
from torch import nn
from torchvision.models import resnet18, resnet34
from fastai.vision.all import OptimWrapper
from fastai.callback.mixup import MixUp

from helpers.learners import InBatch, make_learner, n_params, quiet, small, state
from helpers.methods import tiny_resnet
from focusnet_fastai.loss import focus_picking_loss
from focusnet_fastai.methods.frskd import (attention_map, BiFPNc, feature_distances, FocusFRSKD, FRSKD, FRSKDF, FRSKDNetwork, Fusion, half_size)
from focusnet_fastai.methods.stages import training_complexity
from focusnet_fastai.models import complexity, half_mobilenet_v2, small_resnet18

half_mobilenet_v2_small = partial(half_mobilenet_v2, small=True)
RES = [64, 128, 256, 512]


@pytest.fixture(scope='module')
def data(): return small()


def meta(make):
    with torch.device('meta'): return make()


@pytest.mark.parametrize('make,n,params,size,gflops,plain', [
    (small_resnet18, 200, 17_749_726, 64, 7.581, 4.4436), (lambda n: resnet18(num_classes=n), 200, 17_757_406, 224, 6.03, 3.627),
    (lambda n: resnet34(num_classes=n), 1000, 29_095_966, 224, 9.73, 7.33)])
def test_table_6(make, n, params, size, gflops, plain):
    "The paper prints 17.75 M and 7.62 G for the first: training, with batch norm and other cheap layers counted"
    net = meta(lambda: FRSKDNetwork(make(n), n))
    cost = training_complexity(net, size)
    assert cost.params == params == n_params(net)
    assert cost.flops/1e9 == pytest.approx(gflops, abs=.0006 if size == 64 else .006)
    assert complexity(net.net, size).flops/1e9 == pytest.approx(plain, abs=.005)
    assert complexity(net, size).flops == complexity(net.net, size).flops  # in eval mode, it is the plain network
    if size == 64: assert f'{params/1e6:.2f}' == '17.75' and .5 < (7.62e9-cost.flops)/4/9.6e6 < 1.5


def test_self_teacher_part_by_part():
    c, d, n = RES, [2*o for o in RES], 200
    conv = lambda i, o: i*o + 2*o
    fuse = lambda o, k: 2*(9*o + o*o + 2*o) + k
    want = (sum(map(conv, c, d)) + sum(map(conv, c[1:], d[1:])) + sum(map(conv, d[1:], d)) + sum(map(conv, d, d[1:]))
            + sum(fuse(o, 2) for o in d[:-1]) + sum(fuse(o, 3) for o in d[1:-1]) + fuse(d[-1], 2) + (d[-1]+1)*n)
    assert want == n_params(BiFPNc(c, n)) == 17_749_726 - 11_271_432
    assert n_params(BiFPNc(c, n, width=1)) < want/3


def test_mobilenet_has_no_2560_channels():
    net = FRSKDNetwork(half_mobilenet_v2(200), 200)
    assert net.teacher.head.in_features == 320 and n_params(net.net) == 943_880 and n_params(net) < 2*943_880


@pytest.mark.parametrize('h,w', [(4, 4), (5, 5), (7, 4), (8, 9), (2, 3), (1, 1)])
def test_half_size_by_hand(h, w):
    x = torch.rand(1, 1, h, w)
    H, W = (h+1)//2, (w+1)//2
    span = lambda i, n: range(max(2*i - n%2, 0), min(2*i - n%2 + 3, n))
    want = torch.tensor([[max(x[0, 0, a, b] for a in span(i, h) for b in span(j, w)) for j in range(W)] for i in range(H)])
    assert torch.equal(half_size(x, (H, W))[0, 0], want)
    assert half_size(x, (h, w)) is x and half_size(x, (H+1, W+2)).shape[2:] == (H+1, W+2)


def test_fusion_weights():
    fuse = Fusion(3, 4)
    assert fuse.weight.tolist() == [1, 1, 1]
    fuse.block, fuse.weight.data = nn.Identity(), torch.tensor([2., -1., 6.])
    a, b, c = [torch.randn(2, 4, 3, 3).relu() for _ in range(3)]
    assert torch.allclose(fuse(a, b, c), .25*a + .75*c, atol=1e-5)


def test_self_teacher_against_its_formulas():
    "P4 = L4, Pi = fuse(Li, up P(i+1)); T1 = P1, Ti = fuse(L'i, Pi, down T(i-1)), T4 = fuse(L'4, down T3)"
    torch.manual_seed(0)
    m = BiFPNc([4, 6, 8, 10], 5).eval()
    for f in [*m.fuse_up, *m.fuse_down]: f.weight.data = torch.rand(len(f.weight)) + .1
    f1, f2, f3, f4 = fs = [torch.rand(2, c, s, s) for c, s in zip([4, 6, 8, 10], [16, 8, 4, 2])]
    def fuse(mod, *maps):
        w = mod.weight/mod.weight.sum()
        return mod.block(sum(w[i]*F.relu(o) for i, o in enumerate(maps)))
    up = lambda i, x: m.up[i-1](nn.Upsample(scale_factor=2, mode='nearest')(F.relu(x)))
    down = lambda i, x: m.down[i-2](F.max_pool2d(F.pad(F.relu(x), (0, 1, 0, 1)), 3, 2))
    L, L2 = [None, *[l(f) for l, f in zip(m.lateral, fs)]], [None, None, *[l(f) for l, f in zip(m.lateral2, fs[1:])]]
    p4 = L[4]; p3 = fuse(m.fuse_up[2], L[3], up(3, p4)); p2 = fuse(m.fuse_up[1], L[2], up(2, p3)); p1 = fuse(m.fuse_up[0], L[1], up(1, p2))
    t1 = p1; t2 = fuse(m.fuse_down[0], L2[2], p2, down(2, t1)); t3 = fuse(m.fuse_down[1], L2[3], p3, down(3, t2))
    t4 = fuse(m.fuse_down[2], L2[4], down(4, t3))
    with torch.no_grad(): z, t = m(fs)
    for got, want in zip(t, (t1, t2, t3, t4)): assert torch.allclose(got, want.relu(), atol=1e-5)
    assert torch.allclose(z, m.head(t4.relu().mean((2, 3))), atol=1e-5)
    assert [o.shape for o in t] == [(2, 8, 16, 16), (2, 12, 8, 8), (2, 16, 4, 4), (2, 20, 2, 2)]


@pytest.mark.slow
@pytest.mark.parametrize('make', [lambda n: resnet18(num_classes=n), half_mobilenet_v2, half_mobilenet_v2_small, small_resnet18])
@pytest.mark.parametrize('size', [(80, 80), (72, 50), (33, 47)])
def test_any_image_size(make, size):
    "80 pixels: 20, 10, 5, 3 in a standard ResNet"
    net = FRSKDNetwork(make(5), 5).train()
    with torch.no_grad(): z, zb, maps, refined = net(torch.randn(2, 3, *size))
    assert z.shape == zb.shape == (2, 5) and [m.shape[2:] for m in maps] == [t.shape[2:] for t in refined]
    if size == (80, 80) and net.stages.channels == RES and maps[0].shape[2] == 20: assert [m.shape[2] for m in maps] == [20, 10, 5, 3]
    assert feature_distances(maps, refined).isfinite().all()


def test_stages_of_one_resolution():
    net = BiFPNc([4, 4, 6, 6], 3)
    z, t = net([torch.rand(2, 4, 8, 8), torch.rand(2, 4, 8, 8), torch.rand(2, 6, 2, 2), torch.rand(2, 6, 2, 2)])
    assert [o.shape[2] for o in t] == [8, 8, 2, 2] and z.shape == (2, 3)


z = torch.tensor([[2., .5, -1., .1]], dtype=torch.float64)
zb = torch.tensor([[1., 1.5, -.5, .2]], dtype=torch.float64)
y = torch.tensor([0])
CE, KL, CEB, FP, FP_PAPER = .352406, .314056, 1.200320, .621724, .804868


def test_attention_map_by_hand():
    f = torch.tensor([[[[1., 2.]], [[3., 0.]]], [[[0., 4.]], [[0., -2.]]]])      # (2, 2, 1, 2): mean squares (5, 2) and (0, 10)
    t = torch.tensor([[[[3., 4.]]], [[[1., 0.]]]]).sqrt()                       # (2, 1, 1, 2): (3, 4) and (1, 0)
    a = torch.tensor([[5., 2.], [0., 10.]])/torch.tensor([[29**.5], [10.]])
    b = torch.tensor([[.6, .8], [1., 0.]])
    assert torch.allclose(attention_map(f), a) and torch.allclose(attention_map(t), b)
    assert torch.allclose(attention_map(7*f), a)
    assert torch.allclose(feature_distances([f], [t]), ((a-b)**2).mean(1))
    assert torch.allclose(feature_distances([f, f, t], [t, f, f]), 2*((a-b)**2).mean(1))
    assert feature_distances([f], [t])[1].item() == pytest.approx(1.)
    assert torch.equal(attention_map(f.bfloat16()).dtype and attention_map(torch.zeros(1, 2, 3, 3)), torch.zeros(1, 9))


def test_attention_term_shrinks_with_the_map():
    "methods.md: 1.4e-4 at 32x32 and 3.5e-5 at 64x64 for random maps; a mean over pixels of maps of length 1"
    torch.manual_seed(0)
    d = [feature_distances([torch.randn(4, 64, s, s)], [torch.randn(4, 128, s, s)]).mean().item() for s in (32, 64)]
    assert d[0]/d[1] == pytest.approx(4, rel=.05)


def total(cb):
    f, t = torch.tensor([[[[3., 4.]]]], dtype=torch.float64).sqrt(), torch.tensor([[[[0., 1.]]]], dtype=torch.float64)
    cb.outputs = z, zb, [f], [t]           # distance ((.6)^2 + (.2)^2)/2 = .2
    terms = cb.terms(z, y)
    assert set(terms) == set(cb.weights)
    return sum(w*terms[k] for k, w in cb.weights.items()).item()


@pytest.mark.parametrize('cb,want', [
    (FRSKD(), CE + CEB + 2*KL + 100*.2), (FRSKD(3., 10.), CE + CEB + 3*KL + 10*.2), (FRSKD(1., 0., 3.), CE + CEB + .326977), (FRSKDF(), CE + CEB + 2*KL),
    (FRSKD(0., 0.), CE + CEB), (FocusFRSKD(), FP + CEB + 100*.2), (FocusFRSKD(reading='B'), FP + CEB), (FocusFRSKD(reading='C'), FP + CEB + 100*.2 + CE),
    (FocusFRSKD(feature=0.), FP + CEB), (FocusFRSKD(reading='C', feature=0.), FP + CEB + CE),
    (FocusFRSKD(feature=1., rule='positive', label_smoothing=0.), FP_PAPER + CEB + .2),
    (FocusFRSKD(2., 0., 0.), .411791 + 2*1.102406 + CEB)])
def test_golden_values(cb, want):
    assert F.cross_entropy(zb, y).item() == pytest.approx(CEB, abs=1e-6)
    assert total(cb) == pytest.approx(want, abs=4e-6)


def test_default_weights():
    assert FRSKD().weights == dict(cls=1., teacher=1., kd=2., feature=100.) and FRSKD().T == 4 and FRSKD().width == 2
    assert FRSKDF().weights == dict(cls=1., teacher=1., kd=2.)
    assert FocusFRSKD().weights == dict(cls=1., attention=1., entropy=-1., teacher=1., feature=100.)
    assert FocusFRSKD(reading='B').weights == FocusFRSKD(feature=0.).weights == dict(cls=1., attention=1., entropy=-1., teacher=1.)
    assert FocusFRSKD(reading='C').weights == dict(cls=1., attention=1., entropy=-1., teacher=1., feature=100., ce=1.)
    assert FocusFRSKD().lower_bound(10) == pytest.approx(-2.302585) and FRSKD().lower_bound(10) == 0


def grads(cb, term, seed=0):
    "Whether a term's gradient is anything but exactly zero, by parameter"
    torch.manual_seed(seed)
    net = cb.network(tiny_resnet(), 10).train()
    cb.outputs = net(torch.randn(8, 1, 32, 32))
    cb.terms(cb.outputs[0], torch.arange(8))[term].mean().backward()
    return {n: p.grad is not None and bool((p.grad != 0).any()) for n, p in net.named_parameters()}


def of(g, part): return [v for k, v in g.items() if k.startswith(part)]


@pytest.mark.parametrize('cb', [FRSKD(), FRSKDF(), FRSKD(0., 0.), FocusFRSKD(), FocusFRSKD(detach=False), FocusFRSKD(reading='C')])
def test_who_learns_from_what(cb):
    "Only its own cross-entropy trains the self-teacher; and it trains the network, too, except the head"
    for term in cb.weights:
        g = grads(cb, term)
        if term == 'teacher': assert all(of(g, 'teacher.')) and all(v for k, v in g.items() if k.startswith('net.') and not k.startswith('net.9.'))
        else: assert not any(of(g, 'teacher.')) and any(of(g, 'net.'))
        head = of(g, 'net.9.')
        assert not any(head) if term in ('teacher', 'feature') else all(head)


def test_cross_entropies_alone_reach_the_network_twice(data):
    "alpha = beta = 0: the first convolution moves as under CE(z) + CE(z_b), which is not as under CE(z)"
    seen = []
    learn = make_learner(data, model=tiny_resnet(), opt_func=partial(OptimWrapper, opt=torch.optim.SGD))
    learn2 = FRSKD.wrap(learn, alpha=0., beta=0.)
    def look(l):
        w = l.model.net[0].weight
        ga, gb = [torch.autograd.grad(F.cross_entropy(o, l.y), w, retain_graph=True)[0] for o in l.model.method_outputs]
        g = torch.autograd.grad(l.loss_grad, w, retain_graph=True)[0]
        seen.append(((g-ga-gb).norm() < 1e-4*g.norm(), (g-ga).norm() > .1*g.norm()))
    hook = learn2.model.register_forward_hook(lambda m, i, o: setattr(m, 'method_outputs', o[:2]) if m.training else None)
    with quiet(learn2): learn2.fit(1, .01, cbs=InBatch(look))
    hook.remove()
    assert len(seen) == 4 and all(a and b for a, b in seen)


@pytest.mark.parametrize('kw,want', [
    ({}, (.466946, -.432686, -.049994, .015734)), (dict(detach=False), (.432068, -.412744, -.047642, .028318)),
    (dict(rule='positive', label_smoothing=0.), (.558613, -.241019, -.024994, -.292599)),
    (dict(rule='positive', label_smoothing=0., detach=False), (.502856, -.210050, -.020182, -.272624))])
def test_golden_gradient(kw, want):
    "Of the focus-picking loss by the network's logits; none by the self-teacher's"
    a, b = z.clone().requires_grad_(), zb.clone().requires_grad_()
    cb = FocusFRSKD(feature=0., **kw)
    cb.outputs = a, b, [], []
    terms = cb.terms(a, y)
    sum(w*terms[k] for k, w in cb.weights.items() if k != 'teacher').sum().backward()
    assert b.grad is None and a.grad[0].tolist() == pytest.approx(want, abs=1e-6)
    terms['teacher'].sum().backward()
    assert torch.allclose(b.grad, zb.softmax(1) - F.one_hot(y, 4))
    same_loss = focus_picking_loss(z, zb, y, rule=cb.rule, label_smoothing=cb.label_smoothing, detach=cb.detach)
    assert sum(w*terms[k] for k, w in cb.weights.items() if k != 'teacher').item() == pytest.approx(same_loss.item())


def wrapped(data, cls=FRSKD, seed=0, path='.', opt=None, **kw):
    learn = make_learner(data, seed=seed, path=path)
    learn.model = tiny_resnet()
    if opt: learn.opt_func = opt
    return learn, cls.wrap(learn, **kw)


def test_against_a_loop(data):
    "Same batches, same weights after an epoch: network, self-teacher, running statistics"
    learn, learn2 = wrapped(small(n_train=64), opt=partial(OptimWrapper, opt=torch.optim.SGD), alpha=2., beta=10.)
    net, start, batches = copy.deepcopy(learn2.model), state(learn2.model), []
    with quiet(learn2): learn2.fit(1, .01, cbs=InBatch(lambda l: batches.append((l.x.clone(), l.y.clone()))))
    opt = torch.optim.SGD(net.parameters(), .01)
    net.train()
    phi = lambda f: F.normalize(f.pow(2).mean(1).view(len(f), -1))
    for x, t in batches:
        z, zb, maps, refined = net(x)
        loss = F.cross_entropy(z, t) + F.cross_entropy(zb, t)
        loss = loss + 2*16*F.kl_div((z/4).log_softmax(1), (zb.detach()/4).softmax(1), reduction='batchmean')
        loss = loss + 10*sum((phi(a) - phi(b.detach())).pow(2).mean() for a, b in zip(maps, refined))
        opt.zero_grad(); loss.backward(); opt.step()
    assert len(batches) == 2  # in more steps, rounding errors grow
    got, want = state(learn2.model), state(net)
    off, way = [sum((got[k]-o[k]).float().pow(2).sum() for k in got).sqrt() for o in (want, start)]
    assert way > .1 and off < 1e-3*way


def test_precision_and_place_of_the_network():
    "The self-teacher is made where the network is"
    assert {p.dtype for p in FRSKDNetwork(tiny_resnet().double(), 10).parameters()} == {torch.float64}
    assert {p.device.type for p in FRSKDNetwork(tiny_resnet().to('meta'), 10).parameters()} == {'meta'}
    if torch.cuda.is_available(): assert {p.device.type for p in FRSKDNetwork(tiny_resnet().cuda(), 10).parameters()} == {'cuda'}


@pytest.mark.parametrize('cls', [FRSKD, FocusFRSKD])
def test_mobilenet_and_the_whole_gradient(cls):
    "Every parameter of network and self-teacher learns"
    torch.manual_seed(0)
    cb = cls()
    net = cb.network(half_mobilenet_v2(7), 7).train()
    cb.outputs = net(torch.randn(4, 3, 64, 64))
    terms = cb.terms(cb.outputs[0], torch.arange(4))
    sum(w*terms[k].mean() for k, w in cb.weights.items()).backward()
    assert not [n for n, p in net.named_parameters() if p.grad is None or not p.grad.isfinite().all()]


def test_mixed_images_blend_the_labels_alone(data):
    "Both cross-entropies are blended, as in the authors' code; what compares network and self-teacher has no label"
    learn, learn2 = wrapped(data, beta=10.)
    seen, handler = [], MixUp()
    hook = learn2.model.register_forward_hook(lambda m, i, o: setattr(m, 'seen', o) if m.training else None)
    def look(l):
        z, zb, maps, refined = l.model.seen
        ce = lambda o: (handler.lam*F.cross_entropy(o, l.y, reduction='none') + (1-handler.lam)*F.cross_entropy(o, handler.yb1[0], reduction='none')).mean()
        kd = 16*F.kl_div((z/4).log_softmax(1), (zb/4).softmax(1), reduction='batchmean')
        seen.append((l.loss.item(), (ce(z) + ce(zb) + 2*kd + 10*feature_distances(maps, refined).mean()).item()))
    with quiet(learn2): learn2.fit(1, 1e-3, cbs=[handler, InBatch(look)])
    hook.remove()
    assert len(seen) == 4 and all(a == pytest.approx(b, abs=1e-4) for a, b in seen)


@pytest.mark.slow
def test_it_learns():
    dls = small(n_train=320)
    for cls, kw in ((FRSKD, dict(beta=1.)), (FocusFRSKD, dict(feature=1.))):
        learn, learn2 = wrapped(dls, cls, **kw)
        with quiet(learn2): learn2.fit_one_cycle(3, 1e-2)
        with quiet(learn): assert learn2.unwrap().validate()[1] > .6
