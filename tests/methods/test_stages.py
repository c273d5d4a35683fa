"The four stages of a network: found, bit for bit those of its forward, and never copied."
import copy, pickle
from functools import partial
import pytest, torch
from torch import nn
from torchvision.models import mobilenet_v2, resnet18, resnet34, resnet50, shufflenet_v2_x0_5
from torchvision.models.resnet import BasicBlock, ResNet
from fastai.vision.all import create_vision_model, xresnet18

from helpers.learners import same, state
from helpers.methods import tiny_resnet
from focusnet_fastai.methods.stages import PartNorm1d, PartNorm2d, StageNetwork, stages
from focusnet_fastai.models import half_mobilenet_v2, lenet5, small_resnet18, small_resnet34


def resnet10(n_out): return ResNet(BasicBlock, [1, 1, 1, 1], num_classes=n_out)


def timm_resnet(n_out):
    timm = pytest.importorskip('timm')
    return timm.create_model('resnet18', num_classes=n_out, drop_rate=.3)


half_mobilenet_v2_small = partial(half_mobilenet_v2, small=True)
RES, MOB = [64, 128, 256, 512], [16, 16, 48, 1280]
NETS = dict(small_resnet18=(small_resnet18, RES, 8), small_resnet34=(small_resnet34, RES, 8), resnet18=(lambda n: resnet18(num_classes=n), RES, 32),
            resnet34=(lambda n: resnet34(num_classes=n), RES, 32), resnet50=(lambda n: resnet50(num_classes=n), [256, 512, 1024, 2048], 32),
            resnet10=(resnet10, RES, 32), half_mobilenet_v2=(half_mobilenet_v2, MOB, 32), half_mobilenet_v2_small=(half_mobilenet_v2_small, MOB, 8),
            mobilenet_v2=(lambda n: mobilenet_v2(num_classes=n), [24, 32, 96, 1280], 32), xresnet18=(lambda n: xresnet18(n_out=n, p=.2), RES, 32),
            vision_learner=(lambda n: create_vision_model(resnet18, n, pretrained=False), RES, 32), tiny=(partial(tiny_resnet, n_in=3), [8, 16, 32, 64], 16),
            timm=(timm_resnet, RES, 32))
every_net = pytest.mark.parametrize('make,channels,factor', NETS.values(), ids=list(NETS))


def from_stages(net, x, **kw):
    s = stages(net, 7, **kw)
    f = s.forward_features(x)
    return s.head(s.pool(f[-1])), f


@pytest.mark.parametrize('make,channels,factor,narrow', [
    *[pytest.param(*o, False, id=k) for k, o in NETS.items()], pytest.param(half_mobilenet_v2, [16, 16, 48, 160], 32, True, id='half_mobilenet_v2-narrow'),
    pytest.param(lambda n: mobilenet_v2(num_classes=n), [24, 32, 96, 320], 32, True, id='mobilenet_v2-narrow')])
@pytest.mark.slow
def test_stages_are_the_network(make, channels, factor, narrow):
    "In eval mode and in training, dropout and batch statistics included"
    net, x = make(7), torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        z, f = from_stages(net.eval(), x, narrow=narrow)
        assert torch.equal(z, net(x))
    assert [o.shape[1] for o in f] == stages(net, 7, narrow).channels == channels
    assert [64/o.shape[2] for o in f] == [factor/8, factor/4, factor/2, factor]
    other = copy.deepcopy(net).train()
    torch.manual_seed(0); want = other(x)
    torch.manual_seed(0); z, _ = from_stages(net.train(), x, narrow=narrow)
    assert torch.equal(z, want) and same(state(net), state(other))


@pytest.mark.slow
@every_net
def test_stages_copy_and_register_nothing(make, channels, factor):
    net = make(7)
    before = state(net)
    wrapped = StageNetwork(net, 7)
    s = wrapped.stages
    mine = {id(p) for part in [*s.parts, s.after, s.head] for p in part.parameters()}
    assert mine == {id(p) for p in net.parameters()}
    assert list(wrapped.state_dict()) == [f'net.{k}' for k in before] and same(state(net), before)
    x = torch.randn(2, 3, 64, 64)
    z, f = wrapped.train()(x)
    assert z.shape == (2, 7) and len(f) == 4
    with torch.no_grad(): assert torch.equal(wrapped.eval()(x), net(x))


def test_modules_may_be_replaced_afterwards():
    wrapped = StageNetwork(small_resnet18(7), 7)
    nn.SyncBatchNorm.convert_sync_batchnorm(wrapped)
    assert isinstance(wrapped.stages.parts[0][1], nn.SyncBatchNorm)
    again = pickle.loads(pickle.dumps(wrapped))
    assert again.stages.head is again.net.fc and again.net.fc is not wrapped.net.fc


def test_last_stage_can_be_repeated():
    "What ONE does: a copy of the last stage is a module of its own"
    net, x = small_resnet18(7).eval(), torch.randn(2, 3, 32, 32)
    s = stages(net, 7)
    branch = copy.deepcopy(s.parts[3])
    with torch.no_grad():
        f = s.forward_features(x)
        assert torch.equal(branch(f[2]), f[3])
    assert not {id(p) for p in branch.parameters()} & {id(p) for p in net.parameters()}


class OwnForward(ResNet):
    def forward(self, x): return 2*super().forward(x)


@pytest.mark.parametrize('make,words', [
    (lambda: shufflenet_v2_x0_5(num_classes=7), 'stages of ShuffleNetV2 are not known'), (lambda: OwnForward(BasicBlock, [1]*4, num_classes=7), 'stages of OwnForward are not known'),
    (lambda: lenet5(7), 'four `Sequential`s.*Conv2d, ReLU'), (lambda: small_resnet18(8), 'Linear layer with 7 outputs.*out_features=8'),
    (lambda: half_mobilenet_v2(9), 'Linear layer with 7 outputs')])
def test_refused_networks(make, words):
    with pytest.raises(ValueError, match=words): stages(make(), 7)


def test_norm_of_one_value():
    "As batch norm, but that one value a channel is normalised by the running statistics, which stay"
    for cls, plain, shape in ((PartNorm1d, nn.BatchNorm1d, (5, 3)), (PartNorm2d, nn.BatchNorm2d, (1, 3, 4, 2))):
        a, b, x = cls(3), plain(3), torch.randn(shape)
        assert torch.equal(a(x), b(x)) and same(state(a), state(b))
        one = torch.randn(1, 3, *[1]*(len(shape)-2))
        with pytest.raises(ValueError, match='more than 1 value'): b(one)
        before = state(a)
        assert torch.equal(a(one), b.eval()(one)) and same(state(a), before) and torch.equal(a.eval()(x), b(x))
