"A baseline that is asked sooner gives the same logits, and training with it ends as with the plain one."
import copy
import pytest, timm, torch, torchvision
from fastai.vision.all import Learner, nn, set_seed
from fastai.callback.channelslast import ChannelsLast

from helpers.learners import InBatch, make_learner, quiet, same, state
from focusnet_fastai.compare import paired_logits
from focusnet_fastai.focusnet import FocusNetCallback
from focusnet_fastai.models import half_mobilenet_v2, lenet5, small_resnet18, thin_resnet
from focusnet_fastai.reference import Baseline
from focusnet_fastai.frozen import FrozenNetwork, fold_norms, foldable, norm_pairs, QuickNetwork

pytestmark = pytest.mark.filterwarnings('ignore:.*no better than guessing')


def used(net, x):
    "With statistics and factors that are not 0 and 1"
    torch.manual_seed(0)
    for m in net.modules():
        if isinstance(m, nn.modules.batchnorm._BatchNorm):
            m.running_mean.normal_(0, .3); m.running_var.uniform_(.3, 3)
            nn.init.uniform_(m.weight, .5, 2); nn.init.normal_(m.bias, 0, .2)
    return net.eval()


def vgg():
    "VGG-11's features, without the hundred million weights after them"
    features = torchvision.models.vgg.make_layers(torchvision.models.vgg.cfgs['A'], batch_norm=True)
    return nn.Sequential(features, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 10))


nets = dict(resnet18=(lambda: torchvision.models.resnet18(num_classes=10), 20), thin=(lambda: thin_resnet(10), None), mobilenet=(lambda: half_mobilenet_v2(10), 52),
            small=(lambda: small_resnet18(10), 20), vgg=(vgg, 8), densenet=(lambda: torchvision.models.densenet121(num_classes=10), 59),
            lite=(lambda: timm.create_model('tf_efficientnet_lite0', num_classes=10), 44), shuffle=(lambda: torchvision.models.shufflenet_v2_x0_5(num_classes=10), 56))


@pytest.mark.slow
@pytest.mark.parametrize('name', nets)
def test_folded_is_exact(name):
    make, n = nets[name]
    x = torch.randn(2, 3, 32, 32)
    net = used(make(), x)
    before = state(net)
    pairs = foldable(net, x)
    assert same(before, state(net)) and (n is None or len(pairs) == n), len(pairs)
    with torch.no_grad(): want, got = net(x), fold_norms(copy.deepcopy(net), pairs)(x)
    assert (want-got).abs().max() < 1e-5*max(1, want.abs().max())
    assert not any(isinstance(m, nn.BatchNorm2d) for m in fold_norms(copy.deepcopy(net), pairs).modules()) or name in ('densenet', 'lite')


class Around(nn.Module):
    "The convolution's output also goes around the BatchNorm"
    def __init__(self): super().__init__(); self.conv, self.norm, self.fc = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, 10)
    def forward(self, x): x = self.conv(x); return self.fc((self.norm(x)+x).mean((2, 3)))


class Twice(Around):
    "One convolution, called twice"
    def __init__(self): super().__init__(); self.conv = nn.Conv2d(3, 3, 3, padding=1); self.norm = nn.BatchNorm2d(3); self.fc = nn.Linear(3, 10)
    def forward(self, x): return self.fc(self.norm(self.conv(self.conv(x))).mean((2, 3)))


class OwnConv(nn.Conv2d):
    "Standardises its weights"
    def forward(self, x): return self._conv_forward(x, self.weight-self.weight.mean(), self.bias)


class OwnNorm(nn.BatchNorm2d):
    "Does something else besides"
    def forward(self, x): return super().forward(x).relu()


class Asks(Around):
    "Reads its BatchNorm's factors"
    def forward(self, x): x = self.norm(self.conv(x)); return self.fc((x*self.norm.weight[:, None, None]).mean((2, 3)))


def sequence(conv=nn.Conv2d, norm=nn.BatchNorm2d, **kw):
    return nn.Sequential(conv(3, 8, 3), norm(8, **kw), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))


@pytest.mark.parametrize('net', [Around(), Twice(), Asks(), sequence(OwnConv), sequence(norm=OwnNorm), sequence(track_running_stats=False),
                                 torchvision.models.resnet18(num_classes=10, norm_layer=lambda n: nn.GroupNorm(4, n))], ids=lambda o: type(o).__name__)
def test_what_cannot_be_folded_stays(net):
    x = torch.randn(8, 3, 16, 16)
    if not isinstance(net[1] if isinstance(net, nn.Sequential) else net, nn.BatchNorm2d) or net[1].track_running_stats: net = used(net, x)
    net.eval()
    assert foldable(net, x) == []
    assert torch.equal(QuickNetwork(copy.deepcopy(net))(x), net(x).detach())


def test_affine_off_and_bias(dls):
    for net in (sequence(affine=False), sequence(lambda *a: nn.Conv2d(*a, bias=False))):
        x = torch.randn(8, 3, 16, 16)
        net.train()(x); net.eval()
        assert foldable(net, x) == [('0', '1')]
        assert torch.allclose(QuickNetwork(copy.deepcopy(net))(x), net(x), atol=1e-6)


def test_several_inputs_and_outputs():
    class Two(nn.Module):
        def __init__(self): super().__init__(); self.net = sequence()
        def forward(self, x, scale): return self.net(x)*scale, x
    net, x, s = Two(), torch.randn(8, 3, 16, 16), torch.full((8, 1), 2.)
    net(x, s); net.eval()
    assert foldable(net, x, s) == [('net.0', 'net.1')]
    assert torch.allclose(FrozenNetwork(net).faster()(x, s), net(x, s)[0], atol=1e-6)


def test_half_and_double_networks():
    net, x = sequence(), torch.randn(8, 3, 16, 16)
    net(x); net.eval()
    double = FrozenNetwork(copy.deepcopy(net).double()).faster()
    assert double(x).dtype == torch.float64 and torch.allclose(double(x).float(), net(x), atol=1e-6)
    half = FrozenNetwork(copy.deepcopy(net).bfloat16()).faster()
    assert half(x).dtype == torch.float32 and torch.allclose(half(x), net(x), atol=.05)


def test_logits_are_ordinary_tensors():
    frozen = FrozenNetwork(sequence()).faster()
    z = frozen(torch.randn(4, 3, 8, 8))
    w = torch.ones(10, requires_grad=True)
    (z*w).sum().backward()
    assert not z.is_inference() and not z.requires_grad and w.grad is not None
    z.add_(1)


def small(dls, seed, **kw): set_seed(seed); return make_learner(dls, seed, thin_resnet(10, 1), **kw)


def trained(dls, baseline, **kw):
    learn = small(dls, 2, **kw)
    with quiet(learn): learn.fit(1, 1e-3, cbs=FocusNetCallback(baseline))
    return learn


@pytest.fixture(scope='module')
def thin(dls):
    learn = small(dls, 1)
    with quiet(learn): learn.fit(1, 1e-2)
    return learn


def test_training_ends_the_same(dls, thin):
    a, b = [torch.tensor(trained(dls, Baseline(thin, fold=o)).recorder.values) for o in (False, True)]
    assert torch.allclose(a, b, atol=.02), (a-b).abs().max()


def test_folded_in_training_and_the_learner_is_left_alone(dls, thin):
    before, seen = state(thin.model), []
    learn = small(dls, 2)
    look = InBatch(lambda l: seen.append([m for m in l.focus_net.frozen.modules() if isinstance(m, nn.BatchNorm2d)]))
    with quiet(learn): learn.fit(1, 1e-2, cbs=[FocusNetCallback(thin), look])
    assert seen and not any(seen) and same(before, state(thin.model))
    assert any(isinstance(m, nn.BatchNorm2d) for m in learn.model.modules())


def test_half_precision_by_argument(dls, thin):
    seen, learn = [], small(dls, 2)
    look = InBatch(lambda l: seen.append((l.focus_net.frozen.net(l.x).dtype, l.focus_net.baseline_logits.dtype, l.pred.dtype)))
    with quiet(learn): learn.fit(1, 1e-2, cbs=[FocusNetCallback(Baseline(thin, precision='bf16')), look])
    assert set(seen) == {(torch.bfloat16, torch.float32, torch.float32)}


def test_channels_last_by_argument_or_as_the_learner(dls, thin):
    def last(m): return any(p.ndim == 4 and not p.is_contiguous() for p in m.parameters())
    for baseline, cbs, want in ((thin, None, False), (Baseline(thin, channels_last=True), None, True), (thin, ChannelsLast(), True)):
        seen, learn = [], small(dls, 2, cbs=cbs)
        with quiet(learn): learn.fit(1, 1e-2, cbs=[FocusNetCallback(baseline), InBatch(lambda l: seen.append(last(l.focus_net.frozen)))])
        assert set(seen) == {want}


@pytest.mark.slow
def test_compiled_by_argument(thin):
    x = torch.randn(8, 1, 32, 32)
    frozen, want = FrozenNetwork(thin.model).faster(compile=True), FrozenNetwork(thin.model)(x)
    try: got = frozen(x)
    except Exception as e: pytest.skip(f'torch.compile does not work here: {type(e).__name__}')
    assert hasattr(frozen.net.net, '_orig_mod') and torch.allclose(got, want, atol=1e-5)


def test_unknown_setting(thin):
    with pytest.raises(TypeError, match='no setting half'): Baseline(thin, half=True)


def test_compare_asks_the_network_as_it_is(dls, thin):
    learn = small(dls, 3)
    a, b = [paired_logits(learn, Baseline(thin, **o))[1] for o in ({}, dict(precision='bf16'))]
    assert torch.equal(a, b)


def test_pairs_are_found_by_what_flows():
    net = sequence()
    assert norm_pairs(net.eval(), torch.randn(2, 3, 8, 8)) == [('0', '1')]
    assert not any(m._forward_hooks for m in net.modules())
    assert norm_pairs(lenet5(10), torch.randn(2, 1, 32, 32)) == []
