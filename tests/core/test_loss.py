"The focus-picking loss: golden values, properties, precision."
import math
import pytest, torch, torch.nn.functional as F
from hypothesis import given, assume, strategies as st

from focusnet_fastai.loss import check_range, focus_picking_loss, focus_terms, multi_warm_label, probability_difference, target_probabilities

Z, ZB, Y = torch.tensor([[2., .5, -1., .1]]), torch.tensor([[1., 1.5, -.5, .2]]), torch.tensor([0])
PAPER, RELEASED, SOFT = dict(), dict(rule='released', label_smoothing=.1), dict(rule='soft')

# variant, multi-warm label, L_cls, R_att, total, gradient of the total; worked out independently by hand
GOLDEN = [
    ({**PAPER}, (1/3, 1/3, 0, 1/3), .211601, 1.485739, .804868, (.502856, -.210050, -.020182, -.272624)),
    ({**PAPER, 'detach': True}, (1/3, 1/3, 0, 1/3), .211601, 1.485739, .804868, (.558613, -.241019, -.024994, -.292599)),
    ({**RELEASED}, (.5, .5, 0, 0), .411791, 1.102406, .621724, (.432068, -.412744, -.047642, .028318)),
    ({**RELEASED, 'detach': True}, (.5, .5, 0, 0), .411791, 1.102406, .621724, (.466946, -.432686, -.049994, .015734)),
    ({**SOFT}, (.301098, .496426, .067184, .135292), .211601, 1.555652, .874781, (.535091, -.373143, -.087366, -.074582)),
]


@pytest.mark.parametrize('kw,label,cls,att,total,grad', GOLDEN)
def test_golden_values(kw, label, cls, att, total, grad):
    assert torch.allclose(multi_warm_label(ZB, Y, kw.get('rule', 'positive')), torch.tensor([label]), atol=1e-6)
    terms = focus_terms(Z, ZB, Y, **kw)
    assert list(terms) == ['cls', 'attention', 'entropy'] and all(t.shape == (1,) for t in terms.values())
    got = [terms['cls'].item(), terms['attention'].item(), terms['entropy'].item()]
    assert got == pytest.approx([cls, att, .892472], abs=1e-6)
    z = Z.clone().requires_grad_()
    loss = focus_picking_loss(z, ZB, Y, **kw)
    loss.backward()
    assert loss.item() == pytest.approx(total, abs=1e-6)
    assert z.grad[0].tolist() == pytest.approx(grad, abs=1e-6)


def test_weights_of_the_terms():
    t = focus_terms(Z, ZB, Y)
    for alpha, beta in [(0, 0), (1, 0), (0, 1), (.3, 2.)]:
        want = t['cls'] + alpha*t['attention'] - beta*t['entropy']
        assert focus_picking_loss(Z, ZB, Y, alpha, beta).item() == pytest.approx(want.item(), abs=1e-6)


logits = st.integers(2, 12).flatmap(lambda n: st.integers(1, 5).flatmap(lambda b: st.tuples(
    *[st.lists(st.lists(st.floats(-30, 30), min_size=n, max_size=n), min_size=b, max_size=b)]*2,
    st.lists(st.integers(0, n-1), min_size=b, max_size=b))))


def as_batch(o):
    z, zb, y = o
    return torch.tensor(z, dtype=torch.float64), torch.tensor(zb, dtype=torch.float64), torch.tensor(y)


@given(logits, st.sampled_from(['positive', 'released']))
def test_label_sums_to_one_and_holds_the_target(o, rule):
    _, zb, y = as_batch(o)
    label = multi_warm_label(zb, y, rule)
    assert torch.allclose(label.sum(1), torch.ones(len(y), dtype=torch.float64))
    assert (label.gather(1, y[:, None]) > 0).all()
    warm = (label > 0).double()
    assert torch.allclose(label, warm/warm.sum(1, keepdim=True))  # all warm classes share equally


@given(logits, st.floats(-20, 20))
def test_released_rule_ignores_a_shift(o, shift):
    _, zb, y = as_batch(o)
    margin = ((zb/2).softmax(1) - 1/zb.shape[1]).abs().min()
    assume(margin > 1e-6)  # away from the threshold, where rounding decides
    assert torch.equal(multi_warm_label(zb, y, 'released'), multi_warm_label(zb + shift, y, 'released'))


@given(logits)
def test_positive_rule_follows_a_shift(o):
    _, zb, y = as_batch(o)
    n = zb.shape[1]
    assert torch.allclose(multi_warm_label(zb + 100, y), torch.full_like(zb, 1/n))
    assert torch.equal(multi_warm_label(zb - 100, y), target_probabilities(y, n, torch.float64))


@given(logits)
def test_soft_label_is_the_baselines_prediction(o):
    "Whatever the target; the attention term is then KL(p^b || p) plus a constant"
    z, zb, y = as_batch(o)
    label = multi_warm_label(zb, y, 'soft')
    assert torch.allclose(label, zb.softmax(1)) and torch.equal(label, multi_warm_label(zb, torch.zeros_like(y), 'soft'))
    kl = F.kl_div(z.log_softmax(1), zb.log_softmax(1), reduction='none', log_target=True).sum(1)
    h = -(zb.softmax(1)*zb.log_softmax(1)).sum(1)
    assert torch.allclose(focus_terms(z, zb, y, 'soft')['attention'], kl + h)


@given(logits, st.sampled_from(['positive', 'released', 'soft']))
def test_gradients_of_attention_and_entropy(o, rule):
    "Equation 14, and the derivative of the entropy"
    z, zb, y = as_batch(o)
    z.requires_grad_()
    t, p = focus_terms(z, zb, y, rule), z.softmax(1)
    att, = torch.autograd.grad(t['attention'].mean(), z, retain_graph=True)
    ent, = torch.autograd.grad(t['entropy'].mean(), z)
    assert torch.allclose(att, (p - multi_warm_label(zb, y, rule))/len(y), atol=1e-9)
    h = -(p*p.log()).sum(1, keepdim=True)
    assert torch.allclose(ent, -p*(p.log() + h)/len(y), atol=1e-9)


@given(logits)
def test_reduces_to_cross_entropy(o):
    "A baseline that agrees (d = 0) and alpha = beta = 0"
    z, _, y = as_batch(o)
    assert torch.allclose(focus_picking_loss(z, z, y, alpha=0, beta=0), F.cross_entropy(z, y))
    eps = focus_picking_loss(z, z, y, alpha=0, beta=0, label_smoothing=.1)
    assert torch.allclose(eps, F.cross_entropy(z, y, label_smoothing=.1))


@given(logits)
def test_loss_stays_above_its_bound(o):
    z, zb, y = as_batch(o)
    assert (focus_picking_loss(z, zb, y, reduction='none') > -math.log(z.shape[1]) - 1e-9).all()


@pytest.mark.parametrize('kw', [g[0] for g in GOLDEN])
def test_no_gradient_to_the_baseline(kw):
    z, zb = Z.clone().requires_grad_(), ZB.clone().requires_grad_()
    focus_picking_loss(z, zb, Y, **kw).backward()
    assert zb.grad is None and z.grad.abs().sum() > 0


@pytest.mark.parametrize('kw', [g[0] for g in GOLDEN if not g[0].get('detach')])
def test_gradcheck_in_float64(kw):
    torch.manual_seed(0)
    z, zb, y = torch.randn(3, 5, dtype=torch.float64, requires_grad=True), torch.randn(3, 5, dtype=torch.float64), torch.tensor([0, 4, 2])
    assert focus_picking_loss(z, zb, y, **kw).dtype == torch.float64
    assert torch.autograd.gradcheck(lambda o: focus_picking_loss(o, zb, y, reduction='none', **kw), z)


@pytest.mark.parametrize('scale', [1e4, -1e4])
def test_finite_for_huge_logits(scale):
    z = torch.tensor([[scale, 0., -scale], [0., 0., scale]], requires_grad=True)
    for zb in (z.detach(), -z.detach(), torch.zeros(2, 3)):
        for rule in ('positive', 'released', 'soft'):
            loss = focus_picking_loss(z, zb, torch.tensor([2, 0]), rule=rule, reduction='none')
            grad, = torch.autograd.grad(loss.sum(), z)
            assert loss.isfinite().all() and grad.isfinite().all()


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_half_types_are_computed_in_float32(dtype):
    z, zb = (40*torch.randn(4, 10)).to(dtype), (40*torch.randn(4, 10)).to(dtype)
    y = torch.arange(4)
    z.requires_grad_()
    loss = focus_picking_loss(z, zb, y)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(focus_picking_loss(z.detach().float(), zb.float(), y).item(), abs=1e-5)
    loss.backward()
    assert z.grad.dtype == dtype and z.grad.isfinite().all()


def test_reductions():
    z, zb, y = torch.randn(6, 4), torch.randn(6, 4), torch.randint(4, (6,))
    per = focus_picking_loss(z, zb, y, reduction='none')
    assert per.shape == (6,)
    assert focus_picking_loss(z, zb, y).item() == pytest.approx(per.mean().item(), abs=1e-6)
    assert focus_picking_loss(z, zb, y, reduction='sum').item() == pytest.approx(per.sum().item(), abs=1e-5)
    with pytest.raises(ValueError, match='reduction'): focus_picking_loss(z, zb, y, reduction='avg')


def test_probability_targets():
    z, zb, y = torch.randn(6, 4), torch.randn(6, 4), torch.randint(4, (6,))
    hot = F.one_hot(y, 4).float()
    for kw in (PAPER, RELEASED):
        a, b = [focus_picking_loss(z, zb, t, reduction='none', **kw) for t in (y, hot)]
        assert torch.allclose(a, b)
    # Equation 5 with y as given: a class that is half true and not warm enters with its half
    label = multi_warm_label(torch.tensor([[-1., -1., 1.]]), torch.tensor([[.5, .5, 0.]]))
    assert torch.allclose(label, torch.tensor([[.25, .25, .5]]))


def test_own_rule():
    top2 = lambda zb: zb >= zb.topk(2, dim=1).values[:, -1:]
    assert torch.equal(multi_warm_label(ZB, torch.tensor([1]), top2), torch.tensor([[.5, .5, 0, 0]]))


def test_difference_is_between_networks():
    d = probability_difference(Z, ZB)
    assert torch.allclose(d, Z.softmax(1) - ZB.softmax(1)) and d.sum().abs() < 1e-6


@pytest.mark.parametrize('z,zb,y,words', [
    (torch.zeros(2, 3), torch.zeros(2, 4), torch.zeros(2).long(), r'\(2, 3\).*\(2, 4\)'),
    (torch.zeros(3), torch.zeros(3), torch.zeros(3).long(), 'batch, classes'),
    (torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(5).long(), r'\(5,\)'),
    (torch.zeros(2, 3), torch.zeros(2, 3), torch.tensor([0, 3]), r'0\.\.2'),
    (torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(2), 'integers'),
])
def test_bad_input_is_named(z, zb, y, words):
    with pytest.raises(ValueError, match=words): focus_picking_loss(z, zb, y)


@pytest.mark.parametrize('rule', ['hot', None, 3, True, ['positive']])
def test_unknown_rule_is_named(rule):
    with pytest.raises(ValueError, match="Unknown warm rule.*positive.*soft"): multi_warm_label(ZB, Y, rule)


@pytest.mark.parametrize('low,high,value', [(0, 1, -.1), (0, 1, 1.1), (0, math.inf, -math.inf), (0, 1, math.nan)])
def test_number_out_of_range_is_named(low, high, value):
    with pytest.raises(ValueError, match='`alpha` must lie in 0'): check_range(low, high, alpha=value)
    check_range(low, high, alpha=.5)
