"Class maps: the identity with the logits, torchcam as oracle, and networks left as they were found"
import copy, gc, weakref
from types import SimpleNamespace
import numpy as np, pytest, torch, torch.nn.functional as F
from torch import nn
from sklearn.datasets import load_digits
from torchvision import models as tvm
from focusnet_fastai.see.cam import class_maps, find_head
from focusnet_fastai.see.maps import contrast_maps, enlarged, evidence, normalize_maps
from focusnet_fastai.see.gradcam import grad_maps, gradcam_maps
from focusnet_fastai.see.asking import layout_of, to_map
from focusnet_fastai.see.asking import undisturbed
from focusnet_fastai.see.maps import upsample, weighted_sum

def conv(ni, nf, stride=1, inplace=True):
    return nn.Sequential(nn.Conv2d(ni, nf, 3, stride, 1), nn.BatchNorm2d(nf), nn.ReLU(inplace=inplace))
def head(nf, n=10, bias=True): return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(nf, n, bias=bias))
def gap_net(inplace=True, bias=True): return nn.Sequential(conv(1,12,inplace=inplace), conv(12,24,2,inplace), head(24, bias=bias))

class LeNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.c1,self.c2 = nn.Conv2d(1,6,5,padding=2),nn.Conv2d(6,16,5,padding=2)
        self.pool = nn.MaxPool2d(2)
        self.f1,self.f2,self.f3 = nn.Linear(16*4*4,32),nn.Linear(32,24),nn.Linear(24,10)
    def forward(self, x):
        x = self.pool(F.relu(self.c1(x)))
        x = self.pool(F.relu(self.c2(x)))
        return self.f3(F.relu(self.f2(F.relu(self.f1(x.flatten(1))))))

class Functional(nn.Module):
    "ReLU and pooling are plain functions, as in many networks for CIFAR"
    def __init__(self, inplace):
        super().__init__()
        self.inplace = inplace
        self.c1,self.c2,self.bn,self.linear = nn.Conv2d(1,8,3,padding=1),nn.Conv2d(8,16,3,padding=1),nn.BatchNorm2d(16),nn.Linear(16,10)
    def forward(self, x):
        x = F.relu(self.bn(self.c2(F.relu(self.c1(x)))), inplace=self.inplace)
        x = F.avg_pool2d(x, x.shape[2:])
        return self.linear(x.view(x.size(0), -1))

class SENet(nn.Module):
    "Its squeeze also reads the mean of a map with a `Linear`, with as many inputs and outputs as the head"
    def __init__(self):
        super().__init__()
        self.body,self.squeeze,self.fc = conv(1,10),nn.Linear(10,10),nn.Linear(10,10)
    def forward(self, x):
        x = self.body(x)
        x = x*self.squeeze(x.mean((2,3))).sigmoid()[...,None,None]
        return self.fc(x.mean((2,3)))

class MeanNet(nn.Module):
    "`view` and `mean` over the last dimension; Dropout on the map and before the `Linear`"
    def __init__(self):
        super().__init__()
        self.body,self.drop2,self.drop,self.out = conv(1,10),nn.Dropout2d(0.5),nn.Dropout(0.5),nn.Linear(10,10)
    def forward(self, x): return self.out(self.drop(self.drop2(self.body(x)).flatten(2).mean(-1)))

def randomise(model, seed=0):
    "Biases, BatchNorm statistics and affine parameters that are not 0 and 1, so that nothing is equal by accident"
    g = torch.Generator().manual_seed(seed)
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d):
            for t,scale,shift in [(m.running_mean,.1,0), (m.running_var,.2,1), (m.weight.data,.2,1), (m.bias.data,.1,0)]:
                t.copy_(torch.rand(t.shape, generator=g)*scale + shift)
        elif isinstance(m, nn.Linear):
            m.weight.data.copy_(torch.randn(m.weight.shape, generator=g)*m.in_features**-.5)
            if m.bias is not None: m.bias.data.copy_(torch.randn(m.bias.shape, generator=g))
    return model

@pytest.fixture(autouse=True)
def seed(): torch.manual_seed(0)
@pytest.fixture(scope='module')
def digits():
    d = load_digits()
    return torch.tensor(d.images[:16], dtype=torch.float32)[:,None]/16, torch.tensor(d.target[:16])
@pytest.fixture(scope='module')
def digits16(digits): return F.interpolate(digits[0], size=(16,16), mode='bilinear', align_corners=False)
@pytest.fixture(scope='module')
def rgb(digits): return F.interpolate(digits[0][:4], size=(64,64), mode='bilinear', align_corners=False).repeat(1,3,1,1)

def snapshot(model):
    "All that must be as it was found"
    hooks = '_forward_hooks _forward_pre_hooks _backward_hooks _backward_pre_hooks _forward_hooks_always_called _forward_hooks_with_kwargs'
    return dict(modes=[m.training for m in model.modules()], hooks=[[list(getattr(m,h)) for h in hooks.split()] for m in model.modules()],
                flags=[p.requires_grad for p in model.parameters()], grads=[p.grad for p in model.parameters()],
                values=[None if p.grad is None else p.grad.clone() for p in model.parameters()],
                state={k:v.clone() for k,v in model.state_dict().items()}, rng=torch.get_rng_state(),
                modules=[set(vars(m)) for m in model.modules()],
                globals=(torch.is_grad_enabled(), torch.is_autocast_enabled('cpu'), torch.is_inference_mode_enabled()))
def assert_same(a, b):
    for k in 'modes hooks flags modules globals'.split(): assert a[k]==b[k], k
    assert all(p is q for p,q in zip(a['grads'], b['grads']))
    assert all((p is None and q is None) or torch.equal(p, q) for p,q in zip(a['values'], b['values']))
    assert all(torch.equal(a['state'][k], b['state'][k]) for k in a['state'])
    assert torch.equal(a['rng'], b['rng'])

def mixed(model):
    "In training, with one submodule in eval, some parameters frozen and one gradient present"
    model.train()
    next(m for m in model.modules() if isinstance(m, nn.BatchNorm2d)).eval()
    ps = list(model.parameters())
    for p in ps[:len(ps)//2]: p.requires_grad_(False)
    ps[-1].grad = torch.ones_like(ps[-1])
    model.register_forward_hook(lambda m,i,o: None)
    return model

small_nets = dict(sequential=gap_net, no_bias=lambda: gap_net(bias=False), functional=lambda: Functional(False),
                  functional_inplace=lambda: Functional(True), squeeze_excite=SENet, mean=MeanNet)
big_nets = dict(resnet18=('fc','layer4'), resnet50=('fc','layer4'), mobilenet_v2=('classifier.1','features'), densenet121=('classifier','features'),
                shufflenet_v2_x0_5=('fc','conv5'), regnet_y_400mf=('fc','trunk_output'))

def check_identity(model, xb, **kw):
    model = randomise(model)
    maps,h = class_maps(model, xb),find_head(model, xb)
    with torch.no_grad(): z = copy.deepcopy(model).eval()(xb)
    assert maps.shape[:2]==z.shape and maps.shape[2]*maps.shape[3]>1 and maps.shape[2:]==h.features.shape[2:]
    b = 0 if h.linear.bias is None else h.linear.bias
    torch.testing.assert_close(maps.mean((2,3)) + b, z, **(kw or dict(rtol=1e-4, atol=1e-4)))
    torch.testing.assert_close(h.logits, z)
    assert h.linear is dict(model.named_modules())[h.name]
    assert not maps.requires_grad and not maps.is_inference() and type(maps) is torch.Tensor
    assert maps.std((2,3)).min()>0
    return h,maps

@pytest.mark.parametrize('name', small_nets)
def test_identity_small(name, digits): check_identity(small_nets[name](), digits[0])

@pytest.mark.parametrize('name', big_nets)
def test_identity_torchvision(name, rgb):
    h,_ = check_identity(getattr(tvm, name)(num_classes=10), rgb)
    assert (h.name,h.layer)==big_nets[name]

@pytest.mark.parametrize('name', ['resnet18', 'mobilenetv2_050', 'efficientnet_b0', 'resnet10t'])
def test_identity_timm(name, rgb):
    timm = pytest.importorskip('timm')
    check_identity(timm.create_model(name, pretrained=False, num_classes=7), rgb)

def test_identity_fastai(digits):
    vision = pytest.importorskip('fastai.vision.all')
    body = nn.Sequential(conv(1,12), conv(12,24))
    h = vision.create_head(24, 10, lin_ftrs=[], first_bn=False, concat_pool=False)
    check_identity(nn.Sequential(body, h), digits[0])
    with pytest.raises(ValueError, match=r'AdaptiveConcatPool2d.*\(two Linear layers\).*gradcam_maps'):
        class_maps(nn.Sequential(body, vision.create_head(24, 10)), digits[0])
    with pytest.raises(ValueError, match=r'AdaptiveConcatPool2d.*one Linear layer'):
        class_maps(nn.Sequential(body, vision.create_head(24, 10, lin_ftrs=[], first_bn=False)), digits[0])
    with pytest.raises(ValueError, match='BatchNorm1d'):
        class_maps(randomise(nn.Sequential(body, vision.create_head(24, 10, lin_ftrs=[], concat_pool=False)).apply(
            lambda m: m.running_mean.fill_(1.) if isinstance(m, nn.BatchNorm1d) else None)), digits[0])

@pytest.mark.slow
def test_own_networks(digits, rgb):
    models = pytest.importorskip('focusnet_fastai.models')
    check_identity(models.small_resnet18(10), rgb)
    check_identity(models.half_mobilenet_v2(10), rgb)
    lenet,xb = models.lenet5(10),F.interpolate(digits[0], size=(32,32))
    with pytest.raises(ValueError, match='two Linear layers.*gradcam_maps'): class_maps(lenet, xb)
    maps = gradcam_maps(lenet, xb, [0,1])
    assert maps.shape[:2]==(16,2) and maps.shape[2]>1

def test_squeeze_excite_is_not_the_head(digits): assert find_head(randomise(SENet()), digits[0]).name=='fc'

def test_double(digits):
    h,maps = check_identity(gap_net().double(), digits[0].double(), rtol=1e-12, atol=1e-12)
    assert maps.dtype==torch.float64
    assert class_maps(gap_net().double(), digits[0]).dtype==torch.float64     # a float batch is converted

def test_bfloat16(digits):
    m = gap_net().bfloat16()
    maps,h = class_maps(m, digits[0]),find_head(m, digits[0])
    assert maps.dtype==torch.bfloat16
    torch.testing.assert_close((maps.float().mean((2,3)) + h.linear.bias.float()), h.logits.float(), rtol=0.05, atol=0.05)

@pytest.mark.parametrize('fn', [class_maps, lambda m,x: gradcam_maps(m, x, [0,3])])
def test_no_autocast(fn, digits):
    m = randomise(gap_net())
    want = fn(m, digits[0])
    with torch.autocast('cpu', torch.bfloat16): got = fn(m, digits[0])
    assert got.dtype==torch.float32
    torch.testing.assert_close(got, want, rtol=0, atol=0)

@pytest.mark.parametrize('mode', [torch.no_grad, torch.inference_mode, torch.enable_grad])
@pytest.mark.parametrize('fn', [class_maps, lambda m,x: gradcam_maps(m, x, [0,3])])
def test_inside_grad_modes(fn, mode, digits):
    m = randomise(gap_net())
    want = fn(m, digits[0])
    with mode():
        x = digits[0]*1
        got = fn(m, x)
    torch.testing.assert_close(got.clone(), want)
    assert not got.requires_grad

def test_tensor_subclass(digits):
    vision = pytest.importorskip('fastai.vision.all')
    m,(xb,yb) = randomise(gap_net()),digits
    timg = vision.TensorImageBW(xb)
    for f in (class_maps, lambda m,x: gradcam_maps(m, x, [1])):
        got = f(m, timg)
        assert type(got) is torch.Tensor
        torch.testing.assert_close(got, f(m, xb))
    maps = class_maps(m, xb)
    c = contrast_maps(maps, vision.TensorCategory(yb), torch.ones(16,10))
    torch.testing.assert_close(c, contrast_maps(maps, yb, torch.ones(16,10)))

def test_eval_mode_is_used(digits):
    m = randomise(MeanNet()).train()                        # two Dropouts: training mode would give other maps each time
    torch.testing.assert_close(class_maps(m, digits[0]), class_maps(m, digits[0]), rtol=0, atol=0)
    assert m.training

def test_one_forward(digits):
    m,n = gap_net(),[]
    m.register_forward_hook(lambda *_: n.append(1))
    class_maps(m, digits[0]); assert len(n)==1
    gradcam_maps(m, digits[0], range(10)); assert len(n)==2

@pytest.mark.parametrize('shape', [(1,1,8,8), (2,1,16,12), (3,1,9,31)])
def test_any_size(shape): check_identity(gap_net(), torch.rand(shape))

# torchcam as oracle

def torchcam_norm(maps):
    maps = maps - maps.amin((-2,-1), keepdim=True)
    return maps/(maps.amax((-2,-1), keepdim=True) + 1e-8)

@pytest.mark.parametrize('name,layer,fc', [('resnet18','layer4','fc'), ('mobilenet_v2','features','classifier.1')])
def test_torchcam_cam(name, layer, fc, rgb):
    methods = pytest.importorskip('torchcam', minversion='0.5').methods
    m = randomise(getattr(tvm, name)(num_classes=10)).eval()
    with methods.CAM(m, layer, fc) as cam:
        with torch.no_grad(): m(rgb)
        raw = torch.stack([cam(c, normalized=False)[0] for c in range(10)], 1)
        normed = torch.stack([cam(c)[0] for c in range(10)], 1)
    maps = class_maps(m, rgb)
    torch.testing.assert_close(maps, raw, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(torchcam_norm(maps), normed, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(normalize_maps(maps, (2,3)), normed, rtol=1e-3, atol=1e-3)

def gradcam_nets():
    concat = lambda: pytest.importorskip('fastai.vision.all').create_head(24, 10)
    return dict(lenet=(LeNet, 'pool'), conv=(LeNet, 'c2'), sequential=(lambda: gap_net(inplace=False), '1'),
                block=(lambda: gap_net(inplace=False), '0'), create_head=(lambda: nn.Sequential(conv(1,24), concat()), '0'))

@pytest.mark.parametrize('name', gradcam_nets())
def test_torchcam_gradcam(name, digits16):
    methods = pytest.importorskip('torchcam', minversion='0.5').methods
    build,layer = gradcam_nets()[name]
    m = randomise(build()).eval()
    with methods.GradCAM(m, layer) as cam:
        raw  = torch.stack([cam(c, scores=m(digits16), normalized=False)[0] for c in range(10)], 1)
        normed = torch.stack([cam(c, scores=m(digits16))[0] for c in range(10)], 1)
    maps = gradcam_maps(m, digits16, list(range(10)), layer)
    assert maps.max()>0
    torch.testing.assert_close(maps, raw, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(torchcam_norm(maps), normed, rtol=1e-3, atol=1e-3)

def test_torchcam_gradcam_resnet(rgb):
    methods = pytest.importorskip('torchcam', minversion='0.5').methods
    m = randomise(tvm.resnet18(num_classes=10)).eval()
    classes = torch.tensor([3,1,9,0])
    with methods.GradCAM(m, 'layer4') as cam: want = cam(classes.tolist(), scores=m(rgb), normalized=False)[0]
    torch.testing.assert_close(gradcam_maps(m, rgb, classes[:,None])[:,0], want, rtol=1e-4, atol=1e-6)

# Grad-CAM

def test_gradcam_equals_cam(digits):
    m = randomise(gap_net())
    exact,grad = class_maps(m, digits[0]),gradcam_maps(m, digits[0], range(10), relu=False)
    torch.testing.assert_close(grad*grad.shape[2]*grad.shape[3], exact, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(gradcam_maps(m, digits[0], range(10)), grad.relu())
    assert grad.min()<0

def test_gradcam_classes(digits16):
    m,x = randomise(LeNet()),digits16
    every = gradcam_maps(m, x, range(10))
    assert every.shape==(16,10,4,4)
    torch.testing.assert_close(gradcam_maps(m, x, 7), every[:,7:8])
    torch.testing.assert_close(gradcam_maps(m, x, [7,7,2]), every[:,[7,7,2]])
    torch.testing.assert_close(gradcam_maps(m, x, np.array([5,1])), every[:,[5,1]])
    c = torch.randint(0, 10, (16,3))
    torch.testing.assert_close(gradcam_maps(m, x, c), every.gather(1, c[...,None,None].expand(-1,-1,4,4)))
    torch.testing.assert_close(gradcam_maps(m, x[:5], 7), every[:5,7:8], rtol=1e-4, atol=1e-6)       # images do not mix

@pytest.mark.parametrize('classes,msg', [(10,'0..9'), (-1,'0..9'), ([0,10],'0..9'), ([],'shape'), (torch.zeros(16).long(),r'batch=16'),
    (torch.zeros(3,2).long(),'batch=16'), ([1.5],'integers'), (torch.zeros(16,2),'integers'), ([True],'integers'), ('dog',"'dog' is a name"), (['cat',2],"'cat' is a name")])
def test_gradcam_bad_classes(classes, msg, digits16):
    m = mixed(nn.Sequential(conv(1,4), nn.Flatten(), nn.Linear(4*16*16,10)))
    before = snapshot(m)
    with pytest.raises(ValueError, match=msg): gradcam_maps(m, digits16, classes)
    assert_same(before, snapshot(m))

def test_gradcam_layers(digits16):
    m = randomise(LeNet())
    by_name,by_module = gradcam_maps(m, digits16, [1,2], 'c1'),gradcam_maps(m, digits16, [1,2], m.c1)
    torch.testing.assert_close(by_name, by_module)
    assert by_name.shape==(16,2,16,16)
    torch.testing.assert_close(gradcam_maps(m, digits16, 1), gradcam_maps(m, digits16, 1, 'pool'))       # the default: the last map
    for layer,msg in [('c3',"no layer 'c3'"), (nn.Conv2d(1,1,1),'no layer Conv2d'), ('f1',"'f1' returns none")]:
        with pytest.raises(ValueError, match=msg): gradcam_maps(m, digits16, 1, layer)

def test_gradcam_by_definition(digits):
    "Against a plain computation with `retain_grad`, in float64, at a layer with an in-place ReLU after it"
    for inplace in (False, True):
        m = randomise(gap_net(inplace=inplace)).double().eval()
        x = digits[0].double()
        ref = copy.deepcopy(m)
        for mod in ref.modules():
            if isinstance(mod, nn.ReLU): mod.inplace = False
        f = ref[1][1](ref[1][0](ref[0](x))); f.retain_grad()
        ref[2](ref[1][2](f))[:,4].sum().backward()
        want = (f.grad.mean((2,3), keepdim=True)*f).sum(1).detach()
        torch.testing.assert_close(gradcam_maps(m, x, 4, '1.1', relu=False)[:,0], want, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(gradcam_maps(m, x, 4, m[1][1])[:,0], want.relu(), rtol=1e-10, atol=1e-12)

def test_gradcam_does_not_change_the_forward(digits):
    m,seen = randomise(tvm.resnet18(num_classes=10)).eval(),[]
    x = digits[0].repeat(1,3,8,8)[:2]
    with torch.no_grad(): z = m(x)
    m.fc.register_forward_hook(lambda m,i,o: seen.append(o.detach()))
    gradcam_maps(m, x, 0)
    torch.testing.assert_close(seen[0], z)

@pytest.mark.parametrize('frozen', ['none', 'half', 'all'])
def test_gradcam_frozen(frozen, digits16):
    m = randomise(LeNet())
    want = gradcam_maps(m, digits16, [0,1])
    ps = list(m.parameters())
    for p in ps[:dict(none=0, half=len(ps)//2, all=len(ps))[frozen]]: p.requires_grad_(False)
    before = snapshot(m)
    torch.testing.assert_close(gradcam_maps(m, digits16, [0,1]), want, rtol=0, atol=0)
    assert_same(before, snapshot(m))

class Unused(nn.Module):
    "A layer whose output is not used"
    def __init__(self): super().__init__(); self.c,self.net = nn.Conv2d(1,2,3),gap_net()
    def forward(self, x): self.c(x); return self.net(x)

def test_gradcam_unused_layer(digits):
    for m in (Unused(), Unused().requires_grad_(False)):
        with pytest.raises(ValueError, match='do not depend on'): gradcam_maps(m, digits[0], 0, 'c')
    with pytest.raises(ValueError, match='the network returns none'):
        gradcam_maps(nn.Sequential(nn.Flatten(), nn.Linear(64,10)), digits[0], 0)

# Transformers and channels last

def timm_net(name, **kw):
    "A small network of timm with weights in its head, which some start with zeros"
    net = pytest.importorskip('timm').create_model(name, num_classes=5, **kw)
    for m in net.modules():
        if isinstance(m, nn.Linear): nn.init.normal_(m.weight, std=m.in_features**-.5)
    return net.eval()

token_nets = dict( # network, size of the images, the layer that must be found, how many tokens come before the patches
    vit=(lambda: timm_net('vit_tiny_patch16_224', img_size=64, depth=3), (64,64), 'blocks.2.norm1', 1),
    oblong=(lambda: timm_net('vit_tiny_patch16_224', img_size=(64,96), depth=2), (64,96), 'blocks.1.norm1', 1),
    deit=(lambda: timm_net('deit_tiny_distilled_patch16_224', img_size=64, depth=2), (64,64), 'blocks.1.norm1', 2),
    dinov2=(lambda: timm_net('vit_small_patch14_reg4_dinov2', img_size=56, depth=2), (56,56), 'blocks.1.norm1', 5),
    averaging=(lambda: timm_net('vit_tiny_patch16_224', img_size=64, depth=2, global_pool='avg', fc_norm=True, class_token=False), (64,64), 'norm', 0),
    cait=(lambda: timm_net('cait_xxs24_224', img_size=64, depth=2), (64,64), 'blocks_token_only.1.norm1', 1),
    torchvision=(lambda: tv_vit(), (64,64), 'encoder.layers.encoder_layer_1.ln_1', 1))

def tv_vit():
    net = tvm.VisionTransformer(image_size=64, patch_size=16, num_layers=2, num_heads=2, hidden_dim=32, mlp_dim=64, num_classes=5)
    nn.init.normal_(net.heads.head.weight)
    return net.eval()

def kept_output(net, layer, x):
    "The output of a layer in a plain forward with gradients, and the logits"
    kept = []
    hook = net.get_submodule(layer).register_forward_hook(lambda m,i,o: (o.retain_grad(), kept.append(o))[0])
    try: return net(x.clone().requires_grad_()),kept
    finally: hook.remove()

@pytest.mark.parametrize('name', token_nets)
def test_gradcam_of_patch_tokens(name):
    "The last layer whose patches reach the logit, told by name; the maps by plain autograd, token by token"
    build,(h,w),layer,before = token_nets[name]
    net,x = build(),torch.randn(2,3,h,w)
    p = 14 if name=='dinov2' else 16
    got = grad_maps(net, x, lambda z: z[:,[1,3]])
    assert got.layer==layer and got.maps.shape==(2,2,h//p,w//p)
    for k,c in enumerate((1,3)):
        z,(f,) = kept_output(net, layer, x)
        z[:,c].sum().backward()
        weight = f.grad[:,before:].mean(1)
        want = (f[:,before:]*weight[:,None]).sum(2).reshape(2, h//p, w//p)
        torch.testing.assert_close(got.maps[:,k], want.detach(), rtol=1e-3, atol=1e-7)
    torch.testing.assert_close(gradcam_maps(net, x, [1,3]), got.maps.relu())
    torch.testing.assert_close(gradcam_maps(net, x, [1,3], layer), got.maps.relu())
    assert got.maps.abs().max()>0
    if name!='averaging':
        with pytest.raises(ValueError, match='gradcam_maps'): class_maps(net, x)

def as_their_pictures(maps, size):
    "Maps as pytorch-grad-cam shows them: from 0 to 1 each, enlarged"
    large = nn.functional.interpolate(torchcam_norm(maps)[:,None], size, mode='bilinear', align_corners=False)[:,0]
    return torchcam_norm(large.relu())

def patches(t): return t[:,1:].reshape(len(t), 4, 4, -1).movedim(-1, 1) # tokens of a ViT as a picture

@pytest.mark.parametrize('build,layer,ours,reshape', [
    (lambda: randomise(tvm.resnet18(num_classes=5)).eval(), lambda m: m.layer4, 'layer4', None),
    (tv_vit, lambda m: m.encoder.layers[-1].ln_1, 'encoder.layers.encoder_layer_1.ln_1', patches)])
def test_pytorch_grad_cam(build, layer, ours, reshape):
    "The third oracle, where it is installed (pip install grad-cam): a ResNet and a vision transformer"
    package = pytest.importorskip('pytorch_grad_cam')
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
    net,x,classes = build(),torch.rand(4,3,64,64),[3,1,4,0]
    with package.GradCAM(net, [layer(net)], reshape_transform=reshape) as cam: want = cam(x, [ClassifierOutputTarget(o) for o in classes])
    maps = gradcam_maps(net, x, torch.tensor(classes)[:,None], ours)[:,0]
    torch.testing.assert_close(as_their_pictures(maps, (64,64)), torch.from_numpy(want), rtol=1e-4, atol=1e-5)
    assert want.std()>.05

@pytest.mark.slow
@pytest.mark.parametrize('build', [lambda: timm_net('swin_tiny_patch4_window7_224', img_size=64, window_size=4, depths=(1,1), num_heads=(2,2), embed_dim=24), lambda: tvm.swin_t(num_classes=5).eval()])
def test_channels_last(build):
    "Swin: exact maps, whose mean is the logit; Grad-CAM is the same up to the number of cells; a patch on the right shows on the right"
    net,x = build(),torch.randn(2,3,64,64)
    h,maps = check_identity(net, x)
    grad = gradcam_maps(net, x, range(5), relu=False)
    torch.testing.assert_close(grad*grad.shape[2]*grad.shape[3], maps, rtol=1e-3, atol=1e-5)

def test_where_a_token_is(rgb):
    "A network that sees brightness: the map lights up where the light is, with a class token in front"
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm,self.out = nn.Identity(),nn.Linear(1,2)
        def forward(self, x):
            t = F.avg_pool2d(x, 8).mean(1).flatten(1)[...,None]
            t = self.norm(torch.cat([t[:,:1]*0, t], 1))
            return self.out(t.sum(1))
    x = torch.zeros(1,3,32,48)
    x[...,8:16,40:] = 1
    net = Tokens()
    nn.init.ones_(net.out.weight)
    m = gradcam_maps(net, x, 0)
    assert m.shape==(1,1,4,6) and divmod(int(m.argmax()), 6)==(1,5) and (m>0).sum()==1

@pytest.mark.parametrize('shape,kind', [((2,512,7,7),'channels first'), ((2,7,7,768),'channels last'), ((2,197,192),'tokens'), ((2,201,192),'tokens'), ((2,3,197,64),None),
    ((2,7,768,7),None), ((2,512,1,1),None), ((2,512),None), ((8,49,96),None), ((2,768,49),None), ((2,2),None)])
def test_what_is_a_map(shape, kind):
    "Height and width stand to each other as those of the image"
    layout = layout_of(torch.rand(shape), torch.rand(2,3,224,224))
    assert (layout and layout.kind)==kind
    if kind=='channels last': assert to_map(torch.rand(shape), layout).shape==(2,768,7,7)

def test_no_map_is_refused():
    "Sequences, and a layer that gives none"
    net = nn.Sequential(nn.Conv2d(3,8,3), nn.Flatten(2), nn.Flatten(), nn.Linear(8*62*62,4))
    with pytest.raises(ValueError, match="layer '1' returns none"): gradcam_maps(net, torch.rand(1,3,64,64), 0, '1')
    with pytest.raises(ValueError, match='64x64.*returns none'): gradcam_maps(nn.Sequential(nn.Flatten(), nn.Linear(3*64*64,4)), torch.rand(1,3,64,64), 0)

@pytest.mark.parametrize('name', ['vit', 'torchvision'])
@pytest.mark.parametrize('fn', [class_maps, find_head, lambda m,x: gradcam_maps(m, x, 0)])
def test_images_of_another_size(name, fn):
    with pytest.raises(ValueError, match='does not take images of 32x32 pixels'): fn(token_nets[name][0](), torch.rand(1,3,32,32))

# Left as found

class Fails(nn.Module):
    def __init__(self, exc): super().__init__(); self.exc,self.body,self.head = exc,conv(1,12),head(12)
    def forward(self, x):
        x = self.body(x)
        if self.exc: raise self.exc('in the middle')
        return self.head(x)

calls = dict(cam=class_maps, head=find_head, gradcam=lambda m,x: gradcam_maps(m, x, [0,1]),
             gradcam_layer=lambda m,x: gradcam_maps(m, x, 3, next(n for n,c in m.named_modules() if isinstance(c, nn.Conv2d))))

@pytest.mark.parametrize('call', calls)
@pytest.mark.parametrize('context', [torch.no_grad, torch.enable_grad, lambda: torch.autocast('cpu', torch.bfloat16)])
def test_left_as_found(call, context, digits):
    m = mixed(randomise(gap_net()))
    with context():
        before = snapshot(m)
        calls[call](m, digits[0])
        assert_same(before, snapshot(m))

@pytest.mark.parametrize('call', calls)
@pytest.mark.parametrize('exc', [RuntimeError, KeyboardInterrupt])
def test_left_as_found_after_exception(call, exc, digits):
    m = mixed(Fails(exc))
    before = snapshot(m)
    with pytest.raises(exc, match='in the middle'): calls[call](m, digits[0])
    assert_same(before, snapshot(m))
    m.exc = None
    calls[call](m, digits[0])                                                           # and it can be asked again

def test_left_as_found_after_refusal(digits16):
    m = mixed(nn.Sequential(conv(1,4), nn.Flatten(), nn.Linear(4*16*16,10)))
    before = snapshot(m)
    with pytest.raises(ValueError): class_maps(m, digits16)
    with pytest.raises(ValueError): class_maps(m, digits16[0])
    with pytest.raises(RuntimeError): class_maps(m, digits16.repeat(1,2,1,1))           # wrong number of channels
    assert_same(before, snapshot(m))

class Keeps(nn.Module):
    "A network that remembers its forwards, as LeViT caches its biases"
    def __init__(self):
        super().__init__()
        self.net,self.cache,self.list,self.last = gap_net(),{'old':1},[0],None
    def forward(self, x):
        self.last = self.cache['new'] = self.new = self.net(x)
        self.list.append(self.last)
        return self.last

@pytest.mark.parametrize('call', calls)
def test_nothing_is_remembered(call, digits):
    "What a network keeps from a forward is put back, so that it can be copied afterwards"
    m = Keeps()
    cache,kept = m.cache,m.list
    calls[call](m, digits[0])
    assert m.cache is cache=={'old':1} and m.list is kept==[0] and m.last is None and not hasattr(m, 'new')
    copy.deepcopy(m)

@pytest.mark.parametrize('training', [True, False])
def test_levit_can_be_copied(training):
    net = timm_net('levit_128s', img_size=64) if training else timm_net('levit_128s').eval()
    net.train(training)
    gradcam_maps(net, torch.rand(2,3,64,64) if training else torch.rand(1,3,224,224), [0,1])
    copy.deepcopy(net)
    assert net.training==training

@pytest.mark.parametrize('compile', [lambda m,be: torch.compile(m, backend=be), lambda m,be: (m.compile(backend=be), m)[1],
                                     lambda m,be: nn.Sequential(torch.compile(m[0], backend=be), *m[1:])])
@pytest.mark.parametrize('call', calls)
def test_compiled_networks_are_asked_plainly(compile, call, digits):
    "Nothing is compiled for a figure; compiled parts stay as they were"
    m,made = randomise(gap_net()).eval(),[]
    def backend(graph, example):
        made.append(graph)
        return graph.forward
    want = calls[call](m, digits[0])
    net = compile(m, backend)
    impls = [o._compiled_call_impl for o in net.modules()]
    got = calls[call](net, digits[0])
    assert not made and impls==[o._compiled_call_impl for o in net.modules()]
    torch.testing.assert_close(got if isinstance(got, torch.Tensor) else got.logits, want if isinstance(want, torch.Tensor) else want.logits)

def test_maps_do_not_make_a_compiled_network_compile_again(digits):
    "Counted by the compiler itself: one graph before, and the same one after maps in training and evaluation mode"
    import torch._dynamo
    from torch._dynamo.utils import counters
    torch._dynamo.reset()
    counters.clear()
    net = torch.compile(randomise(gap_net()).eval(), backend='eager')
    xb = digits[0]
    def graphs(): return counters['stats']['unique_graphs']
    with torch.no_grad(): net(xb)
    before = graphs()
    assert before >= 1
    for f in calls.values(): f(net, xb)
    with torch.no_grad(): net(xb)
    assert graphs() == before

@pytest.mark.parametrize('call,shape', [('upsample', (64,1000,224,224)), ('weighted_sum', (64,20_000,30,30))])
def test_maps_that_have_no_room_are_refused(call, shape, monkeypatch):
    "Before anything is made: `expand` takes no room"
    b,n,h,w = shape
    monkeypatch.setattr('psutil.virtual_memory', lambda: SimpleNamespace(available=10**9))
    words = f'Maps of {n:,} classes for 64 images, {h}x{w} pixels each, would take .* GB of memory, but only 1.0 GB are free: ask for fewer images'
    with pytest.raises(MemoryError, match=words):
        if call=='upsample': upsample(torch.zeros(1).expand(b,n,7,7), (h,w))
        else: weighted_sum(torch.zeros(1).expand(b,8,h,w), torch.zeros(1).expand(n,8))
    assert upsample(torch.zeros(2,3,4,4), (8,8)).shape==(2,3,8,8)

def test_training_goes_on(digits):
    "Maps between forward and backward leave the gradients as they would have been"
    xb,yb = digits
    grads = []
    for look in (False, True):
        torch.manual_seed(0)
        m = randomise(gap_net()).train()
        loss = F.cross_entropy(m(xb), yb)
        if look: class_maps(m, xb); gradcam_maps(m, xb, [0,1])
        loss.backward()
        grads.append([p.grad for p in m.parameters()])
    for a,b in zip(*grads): torch.testing.assert_close(a, b, rtol=0, atol=0)

def test_input_untouched(digits):
    x = digits[0].clone().requires_grad_()
    class_maps(gap_net(), x); gradcam_maps(gap_net(), x, 1)
    assert x.grad is None and x.requires_grad and torch.equal(x, digits[0])

def test_nothing_kept_alive(digits):
    m = gap_net()
    gradcam_maps(m, digits[0], [0,1]); class_maps(m, digits[0])
    ref = weakref.ref(m)
    del m; gc.collect()
    assert ref() is None

# Refusals

class Softmax(nn.Module):
    def __init__(self): super().__init__(); self.net = gap_net()
    def forward(self, x): return self.net(x).softmax(1)
class Scaled(Softmax):
    def forward(self, x): return self.net(x).mul_(2)
class Tuple(Softmax):
    def forward(self, x): return self.net(x),x
class NaN(Softmax):
    def forward(self, x): return self.net(x)*torch.nan

refusals = dict(
    lenet=(LeNet, r'Linear, Linear, Linear \(3 Linear layers\).*gradcam_maps'),
    max_pool=(lambda: nn.Sequential(conv(1,8), nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(8,10)), r"AdaptiveMaxPool2d.*'3' is not the spatial mean"),
    conv_head=(lambda: nn.Sequential(conv(1,8), nn.AdaptiveAvgPool2d(1), nn.Conv2d(8,10,1), nn.Flatten()), 'no Linear layer'),
    flatten=(lambda: nn.Sequential(conv(1,2), nn.Flatten(), nn.Linear(2*256,10)), 'Flatten, Linear'),
    hidden=(lambda: nn.Sequential(conv(1,8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8,8), nn.ReLU(), nn.Linear(8,10)), 'two Linear layers'),
    softmax=(Softmax, 'output is not that of a Linear'), scaled=(Scaled, 'output is not that of a Linear'),
    tuple=(Tuple, 'returns a tuple'), nan=(NaN, 'not finite'),
    one_pixel=(lambda: nn.Sequential(conv(1,4,4), conv(4,4,4), head(4)), '16x16 pixels are too small'),
    no_map=(lambda: nn.Sequential(nn.Flatten(), nn.Linear(256,10)), 'is not the spatial mean'),
    all_map=(lambda: conv(1,4), r'must return logits.*returns \(16, 4, 16, 16\)'))

@pytest.mark.parametrize('name', refusals)
def test_refusal(name, digits16):
    build,msg = refusals[name]
    with pytest.raises(ValueError, match=msg): class_maps(randomise(build()), digits16)

@pytest.mark.parametrize('name,msg', [('squeezenet1_1','no Linear layer'), ('alexnet','Linear layers'), ('mobilenet_v3_small','two Linear layers')])
def test_refusal_torchvision(name, msg, rgb):
    with pytest.raises(ValueError, match=msg): class_maps(getattr(tvm, name)(num_classes=10), rgb)

@pytest.mark.parametrize('xb,msg', [(torch.rand(1,8,8),r'not \(1, 8, 8\)'), (torch.zeros(2,1,8,8).byte(),'uint8'), (torch.rand(0,1,8,8),r'not \(0, 1'),
                                    (np.zeros((1,1,8,8)),'ndarray'), ((torch.rand(1,1,8,8),0),'tuple')])
def test_bad_batch(xb, msg):
    for f in (class_maps, find_head, lambda m,x: gradcam_maps(m, x, 0)):
        m = mixed(gap_net())
        before = snapshot(m)
        with pytest.raises(ValueError, match=msg): f(m, xb)
        assert_same(before, snapshot(m))

# Contrast maps and display

def test_contrast(digits):
    xb,yb = digits
    maps = class_maps(randomise(gap_net()), xb)
    warm = (torch.rand(16,10)>0.5).float().scatter(1, yb[:,None], 1)
    warm[0] = 0; warm[0,yb[0]] = 1                                                      # only the target is warm
    warm /= warm.sum(1, keepdim=True)
    got = contrast_maps(maps, yb, warm)
    assert got.shape==(16,4,4)
    for b,t in enumerate(yb.tolist()):
        others = [n for n in range(10) if warm[b,n]>0 and n!=t]
        want = maps[b,t] - (maps[b,others].mean(0) if others else 0)
        torch.testing.assert_close(got[b], want, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(got[0], maps[0,yb[0]])
    torch.testing.assert_close(contrast_maps(maps, yb, warm>0), got)
    no_target = warm.scatter(1, yb[:,None], 0)                                          # whether the target is marked makes no difference
    torch.testing.assert_close(contrast_maps(maps, yb, no_target), got)
    assert contrast_maps(maps.double(), yb, warm).dtype==torch.float64

@pytest.mark.parametrize('maps,target,warm,msg', [
    ((2,10,4,4), [0,1], (2,9), 'disagree'), ((2,10,4,4), [0], (2,10), 'disagree'), ((2,4,4), [0,1], (2,4), 'disagree'),
    ((2,10,4,4), [0,10], (2,10), '0..9'), ((2,10,4,4), [0.,1.], (2,10), 'integers')])
def test_contrast_bad(maps, target, warm, msg):
    with pytest.raises(ValueError, match=msg): contrast_maps(torch.rand(maps), torch.tensor(target), torch.ones(warm))

def test_contrast_against_one_class(digits):
    xb,yb = digits
    maps = class_maps(randomise(gap_net()), xb)
    warm,i = torch.ones(16,10),torch.arange(16)
    rivals = (yb+3)%10
    torch.testing.assert_close(contrast_maps(maps, yb, warm, rivals), maps[i,yb]-maps[i,rivals])
    free = yb!=7
    torch.testing.assert_close(contrast_maps(maps[free], yb[free], warm[free], 7), maps[i[free],yb[free]]-maps[free,7])
    with pytest.raises(ValueError, match='told from itself'): contrast_maps(maps, yb, warm, yb)
    with pytest.raises(ValueError, match='0..9'): contrast_maps(maps, yb, warm, 10)

@pytest.mark.parametrize('name,layer', [('resnet18','layer4'), ('mobilenet_v2','features')])
def test_torchcam_finer_cam(name, layer, rgb):
    "A pair and the mean over several classes: torchcam's Finer-CAM of the same picture, up to scale"
    methods = pytest.importorskip('torchcam', minversion='0.5').methods
    m = randomise(getattr(tvm, name)(num_classes=10)).eval()
    x,warm = rgb[:1],torch.zeros(1,10)
    *lowest,target = (m(x)[0]-find_head(m, x).linear.bias).argsort()[[0,1,2,-1]].tolist()
    for others in (lowest[:1], lowest):
        with methods.FinerCAM(m, layer, gamma=1.) as cam: want = cam(target, scores=m(x), comparison_idx=others, normalized=False)[0]
        got = evidence(contrast_maps(class_maps(m, x), [target], warm.index_fill(1, torch.tensor(others), 1)))
        assert got.max()>0
        torch.testing.assert_close(got/got.max(), want/want.max(), rtol=1e-3, atol=1e-4)
        if len(others)==1: torch.testing.assert_close(got, evidence(contrast_maps(class_maps(m, x), [target], warm, others[0])))

def test_evidence_and_larger_images():
    assert evidence(torch.tensor([-1.,0,2])).tolist()==[0,0,2]
    x = torch.linspace(0, 1, 8)[None,None,:,None].expand(2,3,8,6)
    assert enlarged(x, 3).shape==(2,3,24,18)
    torch.testing.assert_close(F.avg_pool2d(enlarged(x, 8), 8), x, atol=.02, rtol=0)
    m = gap_net()
    assert class_maps(m, enlarged(torch.rand(1,1,8,8), 2)).shape==(1,10,8,8)

def test_upsample():
    m = torch.rand(2,3,4,5)
    assert upsample(m, (16,20)).shape==(2,3,16,20)
    torch.testing.assert_close(upsample(m[:,0], torch.Size((16,20))), upsample(m, (16,20))[:,0])
    torch.testing.assert_close(upsample(m, (4,5)), m)
    torch.testing.assert_close(upsample(torch.full((1,3,3), 2.), (7,9)), torch.full((1,7,9), 2.))

def test_normalize():
    m = torch.randn(2,3,4,5)*7 - 3
    n = normalize_maps(m)
    assert n.min()==0 and n.max()==1
    torch.testing.assert_close(n*(m.max()-m.min()) + m.min(), m, rtol=1e-4, atol=1e-4)
    n = normalize_maps(m, (1,2,3))
    assert n.amin((1,2,3)).tolist()==[0,0] and n.amax((1,2,3)).tolist()==[1,1]
    assert (n.amax((2,3))<1).sum()==4                                                   # one class of each image has the maximum
    assert torch.equal(normalize_maps(torch.full((2,4,4), 5.)), torch.zeros(2,4,4))

def test_undisturbed_is_reentrant(digits):
    m = mixed(gap_net())
    before = snapshot(m)
    with undisturbed(m, digits[0]):
        class_maps(m, digits[0])
        assert not any(o.training for o in m.modules())
    assert_same(before, snapshot(m))

@pytest.mark.skipif(not torch.cuda.is_available(), reason='no CUDA device')
def test_cuda(rgb):
    m = randomise(tvm.resnet18(num_classes=10))
    want,grad = class_maps(m, rgb),gradcam_maps(m, rgb, [0,1])
    m.cuda()
    with torch.autocast('cuda', torch.float16): got,ggot = class_maps(m, rgb),gradcam_maps(m, rgb, [0,1])     # the batch moves to the network
    assert got.is_cuda and got.dtype==torch.float32
    torch.testing.assert_close(got.cpu(), want, rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(ggot.cpu(), grad, rtol=1e-2, atol=1e-2)
    contrast_maps(got, torch.tensor([0,1,2,3]), torch.ones(4,10))
