"The networks of the experiments and what they cost."
import pickle
from contextlib import contextmanager

import numpy as np
import pytest, torch, torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn
from torchvision.models import mobilenet_v2, resnet18, resnet34

from focusnet_fastai import models
from focusnet_fastai.models import _mobilenet_stages, Complexity, complexity, half_mobilenet_v2, lenet5, small_resnet18, small_resnet34

half_mobilenet_v2_small = lambda n_out: half_mobilenet_v2(n_out, small=True)
NETS = dict(lenet5=(lenet5, 1, 32), small_resnet18=(small_resnet18, 3, 32), small_resnet34=(small_resnet34, 3, 32),
            half_mobilenet_v2=(half_mobilenet_v2, 3, 64), half_mobilenet_v2_small=(half_mobilenet_v2_small, 3, 32))
every_net = pytest.mark.parametrize('make,n_in,size', NETS.values(), ids=list(NETS))


@contextmanager
def hooked(model, kinds, hook):
    handles = [m.register_forward_hook(hook) for m in model.modules() if isinstance(m, kinds)]
    try: yield
    finally:
        for h in handles: h.remove()


def feature_size(model, x):
    "Height and width of the last map before the pooling"
    sizes = []
    with hooked(model, nn.BatchNorm2d, lambda m, i, o: sizes.append(tuple(o.shape[2:]))), torch.no_grad(): model.eval()(x)
    return sizes[-1]


def counted_by_hand(model, x):
    "2 x multiply-accumulate of convolutions and linear layers, from the shapes of their outputs; also those of batch norms"
    flops, bn = [], []
    def hook(m, inp, out):
        if isinstance(m, nn.BatchNorm2d): bn.append(out.numel())
        else: flops.append(2*out.numel()*m.weight[0].numel())
    with hooked(model, (nn.Conv2d, nn.Linear, nn.BatchNorm2d), hook), torch.no_grad(): model.eval()(x)
    return sum(flops), sum(bn)


# Section 4.2 and Table 4: parameters with 200 classes, GFLOPs at 64x64 as recomputed with another program, and printed
TABLE4 = [
    (small_resnet18, 11_271_432, 4.44, 4.4436, ('11.27', '4.46')),
    (small_resnet34, 21_379_592, 9.28, 9.2754, ('21.38', '9.29')),
    (half_mobilenet_v2, 943_880, .02, .0162, ('0.94', '0.02')),
    (half_mobilenet_v2_small, 943_880, .22, .2242, None),
    (lambda n: resnet18(num_classes=n), 11_279_112, .30, .2963, None),
    (lambda n: resnet34(num_classes=n), 21_387_272, .60, .5983, None),
]


@pytest.mark.parametrize('make,params,g2,g4,paper', TABLE4)
def test_table_4(make, params, g2, g4, paper):
    c = complexity(make(200), 64)
    assert c.params == params
    assert round(c.flops/1e9, 2) == g2
    assert c.flops/1e9 == pytest.approx(g4, abs=1e-4)
    if paper:
        assert f'{c.params/1e6:.2f}' == paper[0]
        assert c.flops/1e9 == pytest.approx(float(paper[1]), abs=.021)


def test_mobilenet_of_table_4_has_the_standard_strides():
    assert round(complexity(half_mobilenet_v2(200), 64).flops/1e9, 3) == .016
    assert 13 < complexity(half_mobilenet_v2(200, small=True), 64).flops/complexity(half_mobilenet_v2(200), 64).flops < 15


@pytest.mark.parametrize('make,n,millions', [
    (small_resnet18, 10, 11.174), (small_resnet18, 100, 11.220), (small_resnet18, 118, 11.229),
    (lambda n: resnet18(num_classes=n), 10, 11.182), (lambda n: resnet18(num_classes=n), 120, 11.238),
    (half_mobilenet_v2, 10, .700), (half_mobilenet_v2, 100, .816), (half_mobilenet_v2, 120, .841)])
def test_parameters_with_other_numbers_of_classes(make, n, millions):
    assert round(sum(p.numel() for p in make(n).parameters())/1e6, 3) == millions


@pytest.mark.parametrize('make,gflops', [(lambda: resnet18(num_classes=200), 3.627), (lambda: half_mobilenet_v2(200), .192)])
def test_flops_at_224(make, gflops): assert round(complexity(make(), 224).flops/1e9, 3) == gflops


@every_net
def test_flops_equal_those_counted_from_output_shapes(make, n_in, size):
    model = make(10)
    flops, _ = counted_by_hand(model, torch.zeros(1, n_in, size, size))
    assert complexity(model, size).flops == flops


@pytest.mark.parametrize('small,g', [((), .0631), ((24,), .2242), ((32,), .1832), ((64,), .1650)])
def test_readings_of_the_fourth_convolution(small, g):
    m = mobilenet_v2(num_classes=200, width_mult=.5, inverted_residual_setting=_mobilenet_stages(small))
    m.features[0][0].stride = (1, 1)
    assert complexity(m, 64).flops/1e9 == pytest.approx(g, abs=1e-4)
    assert complexity(m, 64).params == 943_880
    assert feature_size(m, torch.zeros(1, 3, 64, 64)) == ((8, 8) if small else (4, 4))


@pytest.mark.parametrize('make,factor', [
    (small_resnet18, 8), (small_resnet34, 8), (half_mobilenet_v2_small, 8), (half_mobilenet_v2, 32),
    (lambda n: resnet18(num_classes=n), 32)])
@pytest.mark.parametrize('size', [32, 64])
def test_down_sampling(make, factor, size):
    x = torch.randn(1, 3, size, size)
    assert feature_size(make(10), x) == (size//factor, size//factor)


@pytest.mark.parametrize('name', list(NETS))
@pytest.mark.parametrize('size', [28, 32, 64])
def test_outputs(name, size):
    make, n_in, _ = NETS[name]
    model, x = make(7).eval(), torch.randn(2, n_in, size, size)
    if name == 'lenet5' and size != 32:
        with pytest.raises(RuntimeError): model(x)
        return
    with torch.no_grad(): out = model(x)
    assert out.shape == (2, 7) and out.isfinite().all()


def test_channels():
    x = torch.randn(2, 3, 32, 32)
    assert lenet5(7, n_in=3)(x).shape == (2, 7)
    for make in (small_resnet18, small_resnet34): assert make(7, n_in=1).eval()(x[:, :1]).shape == (2, 7)
    with pytest.raises(RuntimeError): lenet5(7)(x)


def test_lenet_is_lenet():
    m = lenet5(10)
    assert [tuple(p.shape) for p in m.parameters() if p.ndim > 1] == [(6, 1, 5, 5), (16, 6, 5, 5), (120, 16, 5, 5), (84, 120), (10, 84)]
    assert [type(l) for l in m if not isinstance(l, (nn.Conv2d, nn.Linear))] == [nn.MaxPool2d, nn.ReLU]*2 + [nn.ReLU, nn.Flatten, nn.ReLU]
    assert complexity(m, 32) == (61_706, 833_040)


def test_lenet_pools_first_as_if_it_pooled_last():
    pooled_first = lenet5(10)
    pooled_last = nn.Sequential(*[pooled_first[i] for i in (0, 2, 1, 3, 5, 4, *range(6, len(pooled_first)))])
    x, outputs, grads = torch.randn(32, 1, 32, 32), [], []
    for m in (pooled_first, pooled_last):
        m.zero_grad()
        outputs.append(m(x))
        outputs[-1].square().sum().backward()
        grads.append([p.grad.clone() for p in m.parameters()])
    assert torch.equal(*outputs) and all(map(torch.equal, *grads))


@pytest.mark.parametrize('make,arch', [(small_resnet18, resnet18), (small_resnet34, resnet34)])
def test_resnets_are_torchvisions_but_for_the_stem(make, arch):
    model, std = make(10), arch(num_classes=10)
    conv = model.conv1
    assert (conv.kernel_size, conv.stride, conv.padding, conv.bias) == ((3, 3), (1, 1), (1, 1), None)
    assert isinstance(model.maxpool, nn.Identity)
    shapes = lambda m: {k: v.shape for k, v in m.state_dict().items() if k != 'conv1.weight'}
    assert shapes(model) == shapes(std)
    std.conv1, std.maxpool = conv, nn.Identity()
    std.load_state_dict(model.state_dict())
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad(): assert torch.equal(model.eval()(x), std.eval()(x))


@pytest.mark.parametrize('n_in', [1, 3])
def test_first_convolution_starts_like_torchvisions(n_in):
    "Normal with variance 2/fan_out; PyTorch's default would be uniform, with a standard deviation of 0.11 (0.19 for one channel)"
    w = torch.cat([small_resnet18(2, n_in=n_in).conv1.weight.flatten() for _ in range(4)])
    assert w.std().item() == pytest.approx((2/(64*9))**.5, rel=.08)
    assert w.abs().max() > 2.5*w.std() # a uniform distribution ends at 1.73 standard deviations


def test_half_mobilenet_strides_and_shortcuts():
    std, small = half_mobilenet_v2(10), half_mobilenet_v2(10, small=True)
    ref = mobilenet_v2(num_classes=10, width_mult=.5)
    strides = lambda m: [c.stride[0] for c in m.modules() if isinstance(c, nn.Conv2d)]
    shortcuts = lambda m: [b.use_res_connect for b in m.features if hasattr(b, 'use_res_connect')]
    assert str(std) == str(ref) and strides(std) == strides(ref)
    assert [i for i, (a, b) in enumerate(zip(strides(std), strides(small)), 1) if a != b] == [1, 5]
    assert strides(small).count(2) == 3
    assert [b.stride for b in small.features if hasattr(b, 'stride')] == [1, 1, 1, 2, 1, 1, 2, 1, 1, 1, 1, 1, 1, 2, 1, 1, 1]
    assert shortcuts(std) == shortcuts(small) == shortcuts(ref)
    widths = [std.features[0][0].out_channels] + [b.conv[-2].out_channels for b in std.features if hasattr(b, 'conv')]
    assert list(dict.fromkeys(widths)) == [16, 8, 32, 48, 80, 160] and std.last_channel == 1280
    for k, v in std.state_dict().items(): assert small.state_dict()[k].shape == v.shape


@every_net
def test_every_parameter_is_reset(make, n_in, size):
    model = make(10)
    for t in [*model.parameters(), *model.buffers()]: t.detach().fill_(77)
    for m in model.modules():
        if hasattr(m, 'reset_parameters'): m.reset_parameters()
    left = [n for n, t in [*model.named_parameters(), *model.named_buffers()] if (t == 77).any()]
    assert not left


@pytest.mark.slow
@every_net
def test_weights_are_random_and_every_parameter_gets_a_gradient(make, n_in, size):
    torch.manual_seed(0); a = make(10)
    torch.manual_seed(0); b = make(10)
    c = make(10)
    equal = lambda m, n: all(torch.equal(p, q) for p, q in zip(m.parameters(), n.parameters()))
    assert equal(a, b) and not equal(a, c)
    F.cross_entropy(a(torch.randn(4, n_in, size, size)), torch.tensor([0, 1, 2, 3])).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in a.parameters())


@every_net
def test_pickles(make, n_in, size):
    model, x = make(10).eval(), torch.randn(1, n_in, size, size)
    with torch.no_grad(): assert torch.equal(pickle.loads(pickle.dumps(model))(x), model(x))


@pytest.mark.slow
def test_lenet_learns_digits():
    data = load_digits()
    x = F.interpolate(torch.tensor(data.images, dtype=torch.float32)[:, None]/16, size=32, mode='bilinear')
    y = torch.tensor(data.target)
    torch.manual_seed(0)
    model = lenet5(10)
    opt = torch.optim.SGD(model.parameters(), lr=.05, momentum=.9)
    for _ in range(8):
        for i in torch.randperm(1000).split(50):
            opt.zero_grad(); F.cross_entropy(model(x[i]), y[i]).backward(); opt.step()
    with torch.no_grad(): acc = (model(x[1000:]).argmax(1) == y[1000:]).float().mean().item()
    assert acc > .85


@pytest.mark.parametrize('make', [lenet5, small_resnet18, small_resnet34, half_mobilenet_v2])
@pytest.mark.parametrize('n', [0, -1, 2.5, '10', None])
def test_bad_number_of_classes(make, n):
    with pytest.raises(ValueError, match=f'`n_out` must be a positive whole number, but is {n!r}'): make(n)


def test_bad_number_of_channels():
    for make in (lenet5, small_resnet18, small_resnet34):
        with pytest.raises(ValueError, match='`n_in`'): make(10, n_in=0)
    assert lenet5(np.int64(10))[-1].out_features == 10


# complexity

def test_result_is_a_tuple_that_reads_well():
    c = complexity(small_resnet18(200), 64)
    assert isinstance(c, Complexity) and c == (c.params, c.flops) and type(c.params) is type(c.flops) is int
    assert repr(c) == '11,271,432 parameters, 4.444 GFLOPs'
    assert pickle.loads(pickle.dumps(c)) == c


def test_height_comes_before_width():
    conv = nn.Sequential(nn.Conv2d(3, 4, (5, 1)))
    assert complexity(conv, (9, 7)).flops == 2*4*(9-4)*7*3*5
    assert complexity(conv, [7, 9]).flops == 2*4*(7-4)*9*3*5
    assert complexity(conv, 8) == complexity(conv, (8, 8))


def test_channels_of_the_image():
    assert complexity(small_resnet18(10, n_in=1), 32).flops < complexity(small_resnet18(10), 32).flops
    linear = nn.Sequential(nn.Flatten(), nn.Linear(2*4*4, 5))
    assert complexity(linear, 4, n_in=2) == (32*5+5, 2*32*5)
    with pytest.raises(ValueError, match='pass `n_in`'): complexity(linear, 4)
    grouped = nn.Conv2d(8, 8, 3, padding=1, groups=8)
    assert complexity(grouped, 4).flops == 2*8*16*9


def test_shared_parameters_count_once_and_their_work_twice():
    conv = nn.Conv2d(3, 3, 1, bias=False)
    assert complexity(nn.Sequential(conv, conv), 4) == (9, 2*2*3*16*3)


class Counting(nn.Module):
    "Writes to a buffer, replaces two and adds one, in eval mode too, and notes the modes it runs in"
    def __init__(self):
        super().__init__()
        self.conv, self.drop = nn.Conv2d(3, 4, 1), nn.Dropout(.5)
        self.register_buffer('calls', torch.zeros(()))
        self.register_buffer('last', torch.zeros(1))
        self.register_buffer('empty', None)
        self.seen = []
    def forward(self, x):
        self.calls += 1
        self.last, self.empty = x.mean(), x
        self.register_buffer('new', x)
        self.seen.append((self.training, self.drop.training, torch.is_grad_enabled(), x.dtype))
        return self.conv(x)


def snapshot(model):
    return ({n: m.training for n, m in model.named_modules()}, {k: v.clone() for k, v in model.state_dict().items()},
            {n: (p.requires_grad, p.device, p.grad, p.data_ptr(), p._version) for n, p in model.named_parameters()},
            {n: (b.device, b.data_ptr()) for n, b in model.named_buffers()},
            [len(m._forward_hooks)+len(m._forward_pre_hooks) for m in model.modules()])


def assert_same(a, b):
    assert a[0] == b[0] and a[2:] == b[2:]
    assert a[1].keys() == b[1].keys() and all(torch.equal(v, b[1][k]) for k, v in a[1].items())


@pytest.mark.parametrize('make,size', [(lambda: small_resnet18(10), 32), (lambda: half_mobilenet_v2(10), 64), (Counting, 8)])
@pytest.mark.parametrize('fails', [False, True])
def test_network_is_left_as_found(make, size, fails):
    model = make().train()
    mods = list(model.modules())
    mods[-1].eval(); mods[1].eval()
    next(model.parameters()).requires_grad_(False)
    before = snapshot(model)
    if fails:
        with pytest.raises(ValueError, match=f'fails on an image of shape \\(5, {size}, {size}\\)'): complexity(model, size, n_in=5)
    else: complexity(model, size)
    assert_same(before, snapshot(model))
    assert torch.is_grad_enabled()
    if isinstance(model, Counting):
        assert model.seen == [(False, False, False, torch.float32)]
        assert model.calls == 0 and model.last.shape == (1,) and model.empty is None


def test_right_again_after_an_error():
    model = lenet5(10)
    want = complexity(model, 32)
    with pytest.raises(ValueError, match=r'Sequential fails on an image of shape \(1, 28, 28\)'): complexity(model, 28)
    assert complexity(model, 32) == want


def test_random_numbers_are_not_used():
    model = half_mobilenet_v2(10).train()
    before = torch.get_rng_state()
    complexity(model, 32)
    assert torch.equal(before, torch.get_rng_state())


def test_one_image_is_enough_for_batch_norm_of_single_points():
    "In training mode, batch norm refuses a single value per channel"
    model = half_mobilenet_v2(10).train()
    with pytest.raises(ValueError): model(torch.zeros(1, 3, 32, 32))
    assert complexity(model, 32).flops > 0


@pytest.mark.parametrize('dtype', [torch.float64, torch.bfloat16])
def test_other_precisions(dtype):
    assert complexity(lenet5(10).to(dtype), 32) == complexity(lenet5(10), 32)


def test_under_autocast_and_inference_mode():
    model = small_resnet18(10)
    want = complexity(model, 32)
    with torch.autocast('cpu', torch.bfloat16): assert complexity(model, 32) == want
    with torch.inference_mode(): assert complexity(model, 32) == want


def test_a_network_without_memory_stays_there():
    model = small_resnet18(200).to('meta')
    assert complexity(model, 64) == complexity(small_resnet18(200), 64)
    assert {p.device.type for p in model.parameters()} == {'meta'}


@pytest.mark.skipif(not torch.cuda.is_available(), reason='no CUDA device')
def test_on_the_gpu():
    model = small_resnet18(200).cuda()
    assert complexity(model, 64) == complexity(small_resnet18(200), 64)
    assert {t.device.type for t in [*model.parameters(), *model.buffers()]} == {'cuda'}


@pytest.mark.parametrize('size', [0, -3, 6.4, '64', None, (64,), (64, 64, 3), (64, 0)])
def test_bad_size(size):
    with pytest.raises(ValueError, match='`(height|width)` must be a positive whole number'): complexity(lenet5(10), size)


def test_not_a_network():
    with pytest.raises(TypeError, match='must be an nn.Module, but is a str'): complexity('resnet18', 64)
    from fastai.vision.all import DataLoaders, Learner
    x = [(torch.randn(1, 32, 32), torch.tensor(0))]*2
    learn = Learner(DataLoaders.from_dsets(x, x, bs=1, num_workers=0), lenet5(10), loss_func=F.cross_entropy)
    with pytest.raises(TypeError, match='nn.Module, but is a Learner'): complexity(learn, 32)
    assert complexity(learn.model, 32).params == 61_706


def test_names_do_not_collide_with_fastais():
    import fastai.vision.all as fv
    assert set(models.__all__) == {'lenet5', 'small_cnn', 'thin_resnet', 'small_resnet18', 'small_resnet34', 'half_mobilenet_v2', 'Complexity', 'complexity', 'networks', 'network', 'logits_layer'}
    assert not set(models.__all__) & {n for n in vars(fv) if not n.startswith('_')}


@pytest.mark.parametrize('name', list(models.networks))
def test_logits_layer_is_where_the_logits_come_from(name):
    "The one rule, confirmed by value"
    net, x = models.network(name, 10).eval(), torch.randn(2, 1 if name == 'lenet5' else 3, 32, 32)
    seen = []
    hook = net.get_submodule(models.logits_layer(net, 10)).register_forward_hook(lambda m, i, o: seen.append(o))
    with torch.no_grad(): assert net(x) is seen[0] and len(seen) == 1
    hook.remove()
    with pytest.raises(ValueError, match='no Linear layer with 7 outputs'): models.logits_layer(net, 7)
