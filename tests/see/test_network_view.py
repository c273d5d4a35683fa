"What a network makes of images: scales, larger pictures, contrasts, and the method that is told"
import copy
from importlib.util import find_spec
from pathlib import Path
import numpy as np, pytest, torch, torch.nn.functional as F
from PIL import Image
from torch import nn
from fastai.vision.all import Learner
from fastai.vision.learner import create_head
from focusnet_fastai.data.memory import InMemoryLoaders
from focusnet_fastai.focusnet import FocusNetCallback
from focusnet_fastai.loss import multi_warm_label
from focusnet_fastai.models import lenet5
from focusnet_fastai.see.cam import class_maps
from focusnet_fastai.see.maps import contrast_maps, enlarged, evidence
from focusnet_fastai.see.gradcam import gradcam_maps
from focusnet_fastai.see.items import read_scenes
from focusnet_fastai.see.network_view import NetworkView, check_scale, map_scales, paired_views, shown_maps, signed_maps
from helpers.figures import logits
from helpers.photos import cat_batch, cat_network, cat_picture, cats, photo


@pytest.fixture(scope='module')
def s(base): return read_scenes(base, [3, 8, 700])


# ---- scales

def raws():
    torch.manual_seed(0)
    return [torch.randn(3, 4, 6, 5)*8, torch.randn(3, 4, 3, 3)]


@pytest.mark.parametrize('scale', map_scales)
def test_scales_by_definition(scale):
    "Evidence only, from 0 to 1; which maps share a scale"
    maps, limits = shown_maps(raws(), (24, 20), scale)
    for m, raw, l in zip(maps, raws(), limits):
        assert m.shape==(3, 4, 24, 20) and l.shape==(3, 4) and m.min()>=0 and m.max()<=1
        want = F.interpolate(raw.relu()/l[..., None, None], size=(24, 20), mode='bilinear', align_corners=False)
        torch.testing.assert_close(m, want)
        top = raw.relu().flatten(2).amax(2)
        assert (l>=top).all()
        if scale=='map': assert l.equal(top)
        if scale=='network': assert l.equal(top.amax(1, keepdim=True).expand(3, 4))
    assert limits[0].equal(limits[1]) == (scale=='pair')


def test_a_flat_network_is_not_dark():
    "The reason for the default: logits a tenth as large give the same picture on a scale of their own, and a dark one on a common scale"
    a = raws()[0]
    own, common = shown_maps([a, a/10], (6, 5))[0], shown_maps([a, a/10], (6, 5), 'pair')[0]
    torch.testing.assert_close(own[0], own[1])
    assert common[1].max()<.11
    wrong, true = a[:1, :1].clamp(min=1), a[:1, :1].clamp(min=1)/2                       # within a network the classes stay comparable
    m = shown_maps([torch.cat([wrong, true], 1)], (6, 5))[0][0][0]
    torch.testing.assert_close(m[1], m[0]/2)


def test_maps_without_evidence():
    "Nothing speaks for the class: nothing is shown, and nothing is divided by zero"
    maps, limits = shown_maps([-torch.rand(1, 2, 3, 3)], (6, 6))
    assert maps[0].abs().max()==0 and limits[0].tolist()==[[0, 0]]


def test_contrasts_keep_their_sign():
    raw = torch.tensor([[[-4., 2], [1, 0]]])
    maps, limits = signed_maps([raw], (2, 2))
    torch.testing.assert_close(maps[0][0, 0], raw[0]/4)
    assert limits[0].tolist()==[[4]]
    with pytest.raises(ValueError, match="'network', 'pair', 'map', not 'scene'"): check_scale('scene')


# ---- larger pictures

def test_larger_pictures_give_finer_maps(base, s):
    "The maps of the larger batch, the logits of the normal one; what differs is told"
    large = enlarged(s.xb, 3)
    view = NetworkView(base.model, s.xb, large=large)
    torch.testing.assert_close(view.logits, logits(base.model, s.xb))
    torch.testing.assert_close(view.map_logits, logits(base.model, large))
    assert view.all_maps.shape[2:]==(24, 24) and 'at 96x96 pixels' in view.note
    torch.testing.assert_close(view.maps(torch.tensor([[1, 2]]*3)), class_maps(base.model, large)[:, [1, 2]])
    changed = (view.logits.argmax(1)!=view.map_logits.argmax(1)).sum().item()
    assert len(view.other_answers)==changed and (f'{changed} of 3 answers differ' in view.note) == (changed>0)
    plain = NetworkView(base.model, s.xb)
    assert plain.note=='CAM' and plain.other_answers==[] and plain.map_logits.equal(plain.logits)


def test_one_forward_unless_larger(base, s):
    "The maps of all classes cost one forward; larger pictures one more"
    n = []
    hook = base.model.register_forward_hook(lambda *a: n.append(tuple(a[1][0].shape[2:])))
    try:
        NetworkView(base.model, s.xb).maps(torch.arange(10).expand(3, -1))
        assert n==[(32, 32)]
        n.clear()
        NetworkView(base.model, s.xb, large=enlarged(s.xb, 2)).maps(torch.arange(10).expand(3, -1))
        assert n==[(64, 64), (32, 32)]
    finally: hook.remove()


def test_a_network_of_one_size_refuses(base, s):
    with pytest.raises(ValueError, match='does not take images of 64x64 pixels'): NetworkView(lenet5(10), s.xb, large=enlarged(s.xb, 2))


def test_a_photograph():
    "The cat: 4x4 cells become 12x12; its confusing classes are those that are known"
    net, names = cat_network()
    view = NetworkView(net, cat_batch(128), large=cat_batch(384))
    assert view.all_maps.shape[2:]==(12, 12) and NetworkView(net, cat_batch(128)).all_maps.shape[2:]==(4, 4)
    p = view.map_logits.softmax(1)[0]
    assert p.argsort(descending=True)[:4].tolist()==cats and [names[c] for c in cats]==['Egyptian cat', 'tiger cat', 'tabby', 'lynx']
    torch.testing.assert_close(p[cats], torch.tensor([.25, .12, .10, .02]), atol=.02, rtol=0)


def test_the_photograph_is_what_its_note_says():
    "The middle of scikit-image's `chelsea.png`, up to JPEG"
    spec = find_spec('skimage')
    if spec is None: pytest.skip('needs `pip install scikit-image`')
    theirs = Image.open(Path(spec.origin).parent/'data'/'chelsea.png').convert('RGB').crop((75, 0, 375, 300))
    off = np.abs(np.asarray(theirs).astype(int)-np.asarray(cat_picture()))
    assert off.mean()<2 and 'CC0' in photo.with_suffix('.txt').read_text()


# ---- contrasts

def test_contrast_of_exact_maps(base, s):
    "In the learner's order of classes"
    order = list(reversed(range(10)))
    view = NetworkView(base.model, s.xb, order)
    y = torch.tensor(s.targets)
    warm = multi_warm_label(view.logits, y)
    maps = class_maps(base.model, s.xb)[:, order]
    torch.testing.assert_close(view.contrast(y, warm), contrast_maps(maps, y, warm))
    torch.testing.assert_close(view.contrast(y.tolist(), warm, [(o+1)%10 for o in s.targets]), maps[range(3), y]-maps[range(3), (y+1)%10])


@pytest.mark.parametrize('order', [None, list(reversed(range(10)))])
def test_contrast_of_grad_cam(base, s, order):
    "The map of the difference of logits, with both signs"
    torch.manual_seed(0)
    net = nn.Sequential(*base.model[:9], create_head(64, 10)).eval()
    view = NetworkView(net, s.xb, order)
    y = torch.tensor(s.targets)
    warm = multi_warm_label(view.logits, y)
    own = torch.arange(10) if order is None else torch.tensor(order)
    signed = gradcam_maps(net, s.xb, own.tolist(), relu=False)                        # Grad-CAM before its ReLU is linear in the score
    got = view.contrast(y, warm, (y+1)%10)
    torch.testing.assert_close(got, signed[range(3), y]-signed[range(3), (y+1)%10], rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(view.contrast(y, warm), contrast_maps(signed, y, warm), rtol=1e-3, atol=1e-6)
    assert got.min()<0<got.max()
    torch.testing.assert_close(view.maps(torch.arange(10).expand(3, -1)), evidence(signed))


def test_the_method_is_told(base, learn, s):
    view = NetworkView(lenet5(10), s.xb)
    view.maps(torch.tensor([[1]]*3))
    assert view.note==f'Grad-CAM at layer {view.layer}' and view.layer in dict(view.net.named_modules())
    assert [v.name for v in paired_views(learn, lenet5(10), s.xb)]==['Grad-CAM']*2
    a, b = paired_views(learn, base, s.xb, large=enlarged(s.xb, 2))
    assert a.note==b.note=='CAM of the pictures at 64x64 pixels' or 'answers differ' in a.note+b.note


# ---- networks that keep what they have computed

def levits():
    "Two LeViTs of timm on images of noise"
    timm = pytest.importorskip('timm')
    torch.manual_seed(0)
    x, y = torch.rand(8, 3, 64, 64), torch.arange(8) % 2
    dls = InMemoryLoaders.from_tensors((x, y), (x, y), 'ab', bs=4)
    return [Learner(dls, timm.create_model('levit_128s', num_classes=2, img_size=64)) for _ in range(2)]


@pytest.mark.slow
def test_levit(tmp_path):
    "Its attention is cached in eval mode: maps, `compare` and a training against it leave nothing in it, in whatever order"
    base, learn = levits()
    before = {k: v.clone() for k, v in base.model.state_dict().items()}
    nets = [o.model for o in (base, learn)]
    views = paired_views(learn, base, next(iter(base.dls.valid))[0])
    assert all(v.name != 'cam' and v.maps(torch.tensor([[0, 1]]*4)).shape[:2] == (4, 2) for v in views)
    first = learn.compare(base)
    with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-3, cbs=FocusNetCallback(base))
    second = learn.compare(base)
    assert torch.equal(first.zb, second.zb) and not torch.equal(first.z, second.z)
    with torch.no_grad(): assert torch.allclose(base.model.eval()(next(iter(base.dls.valid))[0]), first.zb[:4], atol=1e-4)
    assert all(torch.equal(v, before[k]) for k, v in base.model.state_dict().items())
    for o in nets: copy.deepcopy(o)
    learn.path = tmp_path
    learn.export('a.pkl')
