"One temperature: fitted, put into the last layer, refused where that cannot be. Real trainings on digits; other optimisers and loops hold the values."
import copy, math
import pytest, torch, torch.nn.functional as F
from torch import nn
from fastai.vision.all import Learner, accuracy, create_head, load_learner
from scipy.optimize import minimize_scalar

from focusnet_fastai.calibrate import output_layer
from focusnet_fastai.compare import Comparison
from focusnet_fastai.probabilities import cross_fitted, expected_calibration_error, fit_temperature, halves
from focusnet_fastai.methods.regularise import ConfidencePenalty
from focusnet_fastai.models import lenet5, thin_resnet
from helpers.learners import make_learner, quiet, same, small, state


def trained(cb=None, n_epoch=12):
    learn = make_learner(small(n_train=256, bs=32))
    with quiet(learn): learn.fit_one_cycle(n_epoch, 1e-2, cbs=cb)
    return learn


@pytest.fixture(scope='module')
def plain(): return trained()
@pytest.fixture(scope='module')
def flat(): return trained(ConfidencePenalty(1.))


def copied(learn): return Learner(learn.dls, copy.deepcopy(learn.model), metrics=accuracy)
def preds(learn, dl=None):
    with quiet(learn): return learn.get_preds(dl=dl)


# --- the temperature ---------------------------------------------------------------------------------------------------------------

def noisy(n=400, c=7, scale=3., wrong=.3, seed=0):
    "Logits and labels that are often, but not always, those of the largest logit"
    g = torch.Generator().manual_seed(seed)
    z = scale*torch.randn(n, c, generator=g)
    return z, torch.where(torch.rand(n, generator=g) < wrong, torch.randint(c, (n,), generator=g), z.argmax(1))


@pytest.mark.parametrize('scale', [1e-3, .3, 3., 1e4])
def test_the_smallest_likelihood(scale):
    "Brent's search for the minimum, and plain gradient descent, find the same; on logits of any size"
    z, y = noisy(scale=scale)
    nll = lambda s: F.cross_entropy(z.double()/(scale*math.exp(s)), y).item()
    want = scale*math.exp(minimize_scalar(nll, bounds=(-5, 5), method='bounded', options=dict(xatol=1e-9)).x)
    T = fit_temperature(z, y)
    assert T == pytest.approx(want, rel=1e-5) and fit_temperature(5*z, y) == pytest.approx(5*T, rel=1e-6)
    s = torch.zeros((), dtype=torch.float64, requires_grad=True)
    opt = torch.optim.LBFGS([s], max_iter=100, line_search_fn='strong_wolfe')
    def loss():
        opt.zero_grad()
        l = F.cross_entropy(z.double()/scale*torch.exp(-s), y)
        l.backward()
        return l
    opt.step(loss)
    assert T == pytest.approx(scale*math.exp(s.item()), rel=1e-4)


def test_where_there_is_none():
    z, y = noisy()
    assert fit_temperature(z, z.argmax(1)) == 0 and fit_temperature(z, z.argmin(1)) == math.inf and fit_temperature(z*0, y) == math.inf
    assert all(math.isnan(fit_temperature(*o)) for o in ((z[:0], y[:0]), (torch.where(z > 5, math.nan, z), y), (torch.where(z > 5, math.inf, z), y)))
    assert all(math.isnan(v) for v in cross_fitted(z, z.argmax(1)).values()) and all(math.isnan(v) for v in cross_fitted(z[:1], y[:1]).values())


def test_cross_fitted_by_hand():
    "Every other image of each class; a half is never judged by a temperature of its own"
    z, y = noisy(401)
    seen, first, second = {}, [], []
    for i, c in sorted(enumerate(y.tolist()), key=lambda o: o[1]):
        (second if sum(map(len, (first, second))) % 2 else first).append(i)
    assert [o.tolist() for o in halves(y)] == [first, second]
    for c in range(7): assert abs((y[first] == c).sum() - (y[second] == c).sum()) <= 1
    ta, tb = fit_temperature(z[first], y[first]), fit_temperature(z[second], y[second])
    want = torch.cat([z[first]/tb, z[second]/ta])
    got, labels = cross_fitted(z, y), torch.cat([y[first], y[second]])
    assert got == dict(temperature=pytest.approx(math.sqrt(ta*tb)), nll=pytest.approx(F.cross_entropy(want, labels).item(), rel=1e-5),
                       ece=pytest.approx(expected_calibration_error(want.softmax(1), labels), abs=1e-6))


def test_a_comparison_has_both(plain, flat):
    "Raw and calibrated values of both networks stand in its table"
    c = flat.compare(plain)
    for name, z in zip(c.names, (c.zb, c.z)):
        row, after = c.df.loc[name], cross_fitted(z, c.y)
        assert (row.temperature, row.ece_calibrated, row.nll_calibrated) == tuple(after[k] for k in ('temperature', 'ece', 'nll'))
        assert row.nll == pytest.approx(F.cross_entropy(z, c.y).item()) and row.ece == pytest.approx(expected_calibration_error(z.softmax(1), c.y))
    assert c.df.temperature.focusnet < 1 < c.df.temperature.baseline and c.df.nll_calibrated.focusnet < c.df.nll.focusnet
    perfect = Comparison(10*torch.eye(3), 10*torch.eye(3), torch.arange(3))
    assert perfect.df.temperature.isna().all() and 'nan' in repr(perfect).lower()


# --- in the network ----------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('which', ['plain', 'flat'])
def test_calibrated_in_place(which, request, tmp_path):
    "Answers stay, the likelihood falls; everyone's softmax, an export and saved weights are calibrated; a second time changes nothing"
    learn = copied(request.getfixturevalue(which))
    (p, y), z0 = preds(learn), learn.get_preds(act=lambda o: o)[0]
    net, weight = learn.model, learn.model[-1].weight
    T = learn.calibrate()
    q = preds(learn)[0]
    assert (T > 1) == (which == 'plain') and learn.model is net and net[-1].weight is weight
    assert torch.equal(p.argmax(1), q.argmax(1)) and torch.allclose(q, (z0/T).softmax(1), atol=1e-6)
    assert F.nll_loss(q.log(), y) < F.nll_loss(p.log(), y) and T == pytest.approx(fit_temperature(z0, y), rel=1e-4)
    assert learn.calibrate() == pytest.approx(1, abs=1e-4)
    learn.export(tmp_path/'m.pkl')
    again, x = load_learner(tmp_path/'m.pkl'), learn.dls.valid_ds[5][0]
    assert torch.allclose(again.predict(x)[2], q[5], atol=1e-6)
    other = lenet5(10)
    other.load_state_dict(net.state_dict())
    xb = learn.dls.valid.one_batch()[0]
    with torch.no_grad(): assert torch.allclose(other.eval()(xb).softmax(1), q[:len(xb)], atol=1e-5)
    with quiet(learn): learn.fit(1, 1e-4)  # and it trains on


def test_other_images(plain):
    "One half fits, the other one tells: better there too; modes and gradients are as they were"
    learn = copied(plain)
    a, b = [learn.dls.test_dl([learn.dls.valid_ds[i] for i in range(o, 64, 2)], with_labels=True) for o in (0, 1)]
    p, y = preds(learn, b)
    learn.model.train()
    learn.calibrate(a)
    assert learn.model.training and all(o.grad is None for o in learn.model.parameters())
    q = preds(learn, b)[0]
    assert F.nll_loss(q.log(), y) < F.nll_loss(p.log(), y)


class Averaged(nn.Module):
    "Two heads, as of distilled transformers"
    def __init__(self, net):
        super().__init__()
        self.net, self.second = net, nn.Linear(10, 10)
    def forward(self, x): return (self.net(x) + self.second(self.net(x).detach()))/2


def tied():
    net = nn.Sequential(lenet5(10), nn.ReLU(), nn.Linear(10, 10, bias=False))
    net.other = nn.Linear(10, 10, bias=False)
    net.other.weight = net[2].weight
    return net


refused = dict(softmax=(lambda: nn.Sequential(lenet5(10), nn.Softmax(1)), "not that of the layer '0.*half"), two_heads=(lambda: Averaged(lenet5(10)), "not that of the layer 'second'"),
               tied=(tied, "'2' shares its weights with 'other'|'other' shares its weights with '2'"), no_linear=(lambda: nn.Sequential(nn.Conv2d(1, 10, 32), nn.Flatten()), 'no Linear layer with 10 outputs'),
               computed=(lambda: nn.Sequential(nn.Flatten(), nn.utils.parametrizations.weight_norm(nn.Linear(1024, 10))), 'are computed from others'),
               by_hook=(lambda: nn.Sequential(nn.Flatten(), nn.utils.spectral_norm(nn.Linear(1024, 10))), 'are computed from others'))


@pytest.mark.parametrize('name', refused)
def test_refused_with_the_way_out(plain, name):
    "The network stays as it was, and what to do instead is said"
    make, words = refused[name]
    torch.manual_seed(0)
    learn = Learner(plain.dls, make())
    before = state(learn.model)
    with pytest.raises(ValueError, match=f'(?s)No temperature can be put into this .*({words}).*softmax\\(1\\)'): learn.calibrate()
    assert same(before, state(learn.model))


def test_no_best_temperature(plain):
    learn, ds = copied(plain), plain.dls.valid_ds
    right = [i for i, ok in enumerate(preds(learn)[0].argmax(1) == ds.y.as_subclass(torch.Tensor)) if ok]
    before = state(learn.model)
    with pytest.raises(ValueError, match='All of 20 images are named correctly'): learn.calibrate(learn.dls.test_dl([ds[i] for i in right[:20]], with_labels=True))
    backwards = [(x, (y+1) % 10) for x, y in learn.dls.test_dl([ds[i] for i in right], with_labels=True)]
    with pytest.raises(ValueError, match='no better than guessing'): learn.calibrate(backwards)
    with pytest.raises(ValueError, match='no labels'): learn.calibrate([(x,) for x, _ in plain.dls.valid])
    assert same(before, state(learn.model))
    nn.init.constant_(learn.model[0].weight, math.nan)
    with pytest.raises(ValueError, match='has diverged'): learn.calibrate()
    with pytest.warns(UserWarning, match='surer of images that it has learned'), pytest.raises(ValueError, match='All of 256'): copied(plain).calibrate(plain.dls.train)


@pytest.mark.parametrize('make', [lambda: thin_resnet(10, 1), 'fastai', 'timm'], ids=['resnet', 'fastai', 'timm'])
def test_heads(plain, make):
    "Of torchvision, of fastai (without a bias), of timm: the logits are divided, exactly"
    torch.manual_seed(0)
    if make == 'timm': net = pytest.importorskip('timm').create_model('resnet10t', num_classes=10, in_chans=1)
    elif make == 'fastai': net = nn.Sequential(nn.Conv2d(1, 8, 3, 2), nn.ReLU(), *create_head(8, 10))
    else: net = make()
    learn = Learner(plain.dls, net)
    z = learn.get_preds(act=lambda o: o)[0]
    y = torch.where(torch.arange(64) % 3 > 0, z.argmax(1), z.argmin(1))  # an untrained network is wrong on a third
    dl = [(x, y[16*i:16*i+16]) for i, (x, _) in enumerate(learn.dls.valid.new(bs=16))]
    T = learn.calibrate(dl)
    assert torch.allclose(learn.get_preds(act=lambda o: o)[0]*T, z, atol=1e-4*z.abs().max().item())
    assert isinstance(net.get_submodule(output_layer(net, 10)), nn.Linear)


@pytest.mark.slow
def test_compiled_and_half(plain):
    "A compiled network says the new probabilities; half-precision weights are divided where no answer changes"
    learn = copied(plain)
    want = preds(learn)[0].log()
    learn.model = torch.compile(learn.model, backend='eager')
    preds(learn)
    T = learn.calibrate()
    assert torch.allclose(preds(learn)[0], (want/T).softmax(1), atol=1e-5)
    half = copied(plain)
    half.model.bfloat16()
    sure = [(x, y) for x, y in plain.dls.valid]
    answers = lambda: torch.cat([half.model.eval()(x.as_subclass(torch.Tensor).bfloat16()).argmax(1) for x, _ in sure])
    before, T2 = answers(), half.calibrate()
    assert torch.equal(before, answers()) and T2 == pytest.approx(T, rel=.1) and half.model[-1].weight.dtype == torch.bfloat16


def test_rounding_that_changes_an_answer_is_refused(plain):
    "In half precision two logits may lie so close that a division makes them equal, or swaps them"
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(1024, 10)).bfloat16()
    net[1].weight.data[1:] = net[1].weight.data[:1]
    net[1].weight.data[1:] *= 1 + 2**-7*torch.randint(0, 2, (9, 1024)).bfloat16()  # one step of bfloat16
    learn = Learner(plain.dls, net)
    z = torch.cat([net(x.as_subclass(torch.Tensor).bfloat16()).detach() for x, _ in plain.dls.valid])
    y = torch.where(torch.arange(64) % 4 > 0, z.argmax(1), z.argmin(1))
    before = state(net)
    with pytest.raises(ValueError, match=r'(?s)half precision, and rounding them would change the answer.*learn.model.float\(\)'): learn.calibrate([(x, y[i*32:i*32+32]) for i, (x, _) in enumerate(plain.dls.valid)])
    assert same(before, state(net))
