"Figures 1 and 2: what is drawn is compared with what the networks say, artist by artist"
from copy import deepcopy
import numpy as np, pandas as pd, pytest, torch, torch.nn.functional as F
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from torch import nn
from fastai.vision.all import Learner, set_seed
from fastai.vision.learner import create_head
from focusnet_fastai.see.cam import class_maps
from focusnet_fastai.see.gradcam import gradcam_maps
from focusnet_fastai.data.memory import InMemoryLoaders
from focusnet_fastai.data.digits import digits_dls
from focusnet_fastai.see.page import colours
from focusnet_fastai.see.parts import overlay
from focusnet_fastai.see.contrast import contrast_overlay
from focusnet_fastai.see.architecture import feature_sizes, network_name
from focusnet_fastai.see.confusion import show_confusion
from focusnet_fastai.see.focus import show_focus
from focusnet_fastai.see.page import shown, unshown
from focusnet_fastai.see.curves import plot_baseline_quality, plot_difficulty
from focusnet_fastai.loss import multi_warm_label
from focusnet_fastai.models import lenet5, small_cnn
from focusnet_fastai.see.items import read_scenes
from focusnet_fastai.see.picking import fixed_images, pick_scenes
from helpers.kernels import pictures
from helpers.figures import (all_text, bar_axes, bars, border, image_axes, Many, named_dls, named_learner, names, shown_text)

pytestmark = pytest.mark.slow  # as a whole; `make quick` leaves it out


def check_figure_2(fig, zs, targets, n_classes=10):
    "Borders, logits and labels of every scene against the logits of an independent forward"
    ims, bs = image_axes(fig), bar_axes(fig)
    assert len(ims)==len(zs)*(1+n_classes) and len(bs)==2*len(zs)
    for k, (z, y) in enumerate(zip(zs, targets)):
        target = torch.zeros(1, len(z)) if y is None else F.one_hot(torch.tensor([y]), len(z)).float()
        warm = (z>0) | (target[0]>0)
        got = [border(a) for a in ims[k*(1+n_classes)+1:(k+1)*(1+n_classes)]]
        assert [c==colours.red for c, _ in got]==warm.tolist()
        assert all(c==colours.grey for (c, _), w in zip(got, warm) if not w)
        ls = bars(bs[2*k])
        np.testing.assert_allclose([h for h, *_ in ls], z.tolist(), atol=2e-3)
        assert [(e==colours.red, hatch is not None) for _, hatch, e in ls]==[(v>0, v>0) for v in z.tolist()]
        label = multi_warm_label(z[None], target)[0] if warm.any() else torch.zeros(len(z))
        bl = bars(bs[2*k+1])
        np.testing.assert_allclose([h for h, *_ in bl], label.tolist(), atol=2e-3)
        assert [e==colours.red for _, _, e in bl]==warm.tolist()


def test_confusion_of_indices(base, valid):
    zb, _, y = valid
    idxs = [5, 2, 700]
    fig = base.show_confusion(idxs)
    assert isinstance(fig, Figure) and 'CAM' in all_text(fig) and 'Grad-CAM' not in all_text(fig)
    check_figure_2(fig, zb[idxs], y[idxs].tolist())
    for letter in 'ABC': assert f'Scene {letter}' in shown_text(fig)
    for k, i in enumerate(idxs):
        np.testing.assert_allclose(image_axes(fig)[11*k].images[0].get_array()[..., 0], base.dls.valid_ds[i][0][0], atol=1e-6)


def evidence(raw, dims):
    "Positive parts of raw maps `(..., h, w)` as parts of the largest over `dims`, at the size of the digits"
    m = raw.clamp(min=0)
    m = m/m.amax(dims, keepdim=True).clamp(min=1e-12)
    return F.interpolate(m.flatten(0, -4) if m.ndim>4 else m[None] if m.ndim==3 else m, size=(32, 32), mode='bilinear', align_corners=False).reshape(*m.shape[:-2], 32, 32)


@pytest.mark.parametrize('scale,dims', [('network', (0, 1, 2)), ('pair', (0, 1, 2)), ('map', (1, 2))])
def test_confusion_shows_its_own_maps(base, scale, dims):
    "What speaks for a class, as a part of the largest value of the image or of the map"
    s = read_scenes(base, [3])
    m = evidence(class_maps(base.model, s.xb)[0], dims)
    ims = image_axes(base.show_confusion(3, scale=scale))
    for c in range(10): np.testing.assert_allclose(ims[1+c].images[0].get_array(), overlay(s.images[0], m[c]), atol=1e-5)


def test_scenes_share_an_axis_of_logits(base):
    "And the bars of a label are scaled to its largest entry, however small"
    bs = bar_axes(base.show_confusion([5, 2, 700]))
    assert len({a.get_ylim() for a in bs[::2]})==1
    many = Learner(named_dls([f'class {i}' for i in range(100)]), Many())
    label = bar_axes(many.show_confusion(0))[1]
    assert max(p.get_height() for p in label.patches)>.5*label.get_ylim()[1] and {t.get_text() for t in label.texts}=={f'{1/12:.2g}'}


def test_class_index_and_name(base):
    fig = show_confusion(named_learner(base), [5])
    texts = shown_text(fig)
    for i, n in enumerate(names): assert str(i) in texts and n in texts
    y = int(base.dls.valid_ds[5][1])
    assert any(t.startswith(f'true: {y} {names[y]}') for t in texts)
    framed = [t.get_text() for t in fig.texts if t.get_bbox_patch() is not None]
    assert framed==[str(y)]


def test_a_column_belongs_to_one_class(base):
    "Map, bars and name of a class stand below each other"
    fig = show_confusion(named_learner(base), [5])
    fig.draw_without_rendering()
    maps, (z_ax, l_ax) = image_axes(fig)[1:], bar_axes(fig)
    for c, (m, n) in enumerate(zip(maps, names)):
        box = m.get_position()
        name = next(t for t in fig.texts if t.get_text()==n)
        mid = (box.x0+box.x1)/2
        assert abs(name.get_position()[0]-mid)<1e-6
        for a in (z_ax, l_ax):
            p = a.patches[c]
            x = fig.transFigure.inverted().transform(a.transData.transform((p.get_x()+p.get_width()/2, 0)))[0]
            assert abs(x-mid)<1e-6


def test_no_text_overlaps_another(base, learn):
    "All words of Figures 1 and 2 stand free, also with long names"
    long = [f'{n} Old English sheepdog-terrier' for n in names]
    lb = Learner(named_dls(long, batch_tfms=list(base.dls.valid.after_batch.fs)), base.model)
    ll = Learner(lb.dls, learn.model)
    for fig in (base.show_confusion([5, 2]), show_confusion(lb, [5, 2]), learn.show_focus(base, [5, 2]), show_focus(ll, lb, [5, 2])): assert not overlaps(fig)


def test_released_rule(base, valid):
    z = valid[0][5]
    fig = base.show_confusion([5], rule='released')
    warm = (z/2).softmax(0)>.1
    warm[int(valid[2][5])] = True
    assert [border(a)[0]==colours.red for a in image_axes(fig)[1:]]==warm.tolist()


def test_wrong_arguments(base, learn):
    with pytest.raises(ValueError, match='has no class'): learn.show_focus(base, base.dls.valid_ds[0][0])
    for kw, words in ((dict(scale='x'), 'scale'), (dict(method='x'), 'method'), (dict(alpha=2), 'alpha'), (dict(max_classes=1), 'max_classes'), (dict(rule='x'), 'rule')):
        with pytest.raises(ValueError, match=words): base.show_confusion(3, **kw)


def test_focus(base, learn, valid):
    zb, z, y = valid
    idxs = fixed_images(learn, base)[:2]
    fig = learn.show_focus(base, idxs)
    ims, bs = image_axes(fig), bar_axes(fig)
    assert len(ims)==7*len(idxs) and len(bs)==2*len(idxs)                            # the picture, four maps and two colour bars each
    words = all_text(fig).replace('\n', ' ')
    assert '(red, solid' in words and 'one colour scale for each network' in words
    for k, i in enumerate(idxs):
        wrong, true = int(zb[i].argmax()), int(y[i])
        s = read_scenes(base, [i])
        raw = torch.stack([class_maps(n.model, s.xb)[0, [wrong, true]] for n in (base, learn)])      # independent of the figure
        m = evidence(raw, (1, 2, 3))
        maps = [a for a in ims[7*k:7*k+7] if border(a)[0] in (colours.red, colours.green)]
        assert [border(a)[0] for a in maps]==[colours.green, colours.red]*2
        for a, want in zip(maps, m.flatten(0, 1)): np.testing.assert_allclose(a.images[0].get_array(), overlay(s.images[0], want), atol=1e-5)
        styles = [border(a)[1] for a in maps]
        assert styles[0]!=styles[1] and styles[1]=='-' and styles[:2]==styles[2:]     # black and white print
        for a, logit in zip(bs[2*k:2*k+2], (zb[i], z[i])):
            np.testing.assert_allclose([p.get_width() for p in a.patches], logit.softmax(0).tolist(), atol=1e-4)
            hatches = {c: p.get_hatch() for c, p in enumerate(a.patches)}
            assert hatches[wrong] and hatches[true] and hatches[wrong]!=hatches[true] and not any(h for c, h in hatches.items() if c not in (wrong, true))
        scales = [a for a in ims[7*k:7*k+7] if a.get_yticklabels() and border(a)[0] not in (colours.red, colours.green)]
        assert [[t.get_text() for t in a.get_yticklabels()] for a in scales]==[['0', f'{r.max():.2g}'] for r in raw]
    text = all_text(fig)
    assert 'Baseline: wrong' in text and 'FocusNet: right' in text


def test_focus_where_the_baseline_is_right(base, learn, valid):
    zb, _, y = valid
    i = int((zb.argmax(1)==y).nonzero()[0])
    rival = int(zb[i].topk(2).indices[1])
    s = read_scenes(base, [i])
    maps = [a for a in image_axes(learn.show_focus(base, i)) if border(a)[0]==colours.green]
    raw = torch.stack([class_maps(n.model, s.xb)[0, [rival, int(y[i])]] for n in (base, learn)])
    for a, want in zip(maps, evidence(raw, (1, 2, 3))[:, 0]): np.testing.assert_allclose(a.images[0].get_array(), overlay(s.images[0], want), atol=1e-5)


def test_fixed_images_are_shown(base, learn):
    "The first of `fixed_images`, each with its picture"
    fig = learn.show_fixed(base, 3)
    pictures = [a for a in image_axes(fig) if border(a)[0] not in (colours.red, colours.green) and a.images[0].get_array().shape[:2]==(32, 32)]
    assert len(pictures)==3
    for a, i in zip(pictures, fixed_images(learn, base)): np.testing.assert_allclose(a.images[0].get_array()[..., 0], base.dls.valid_ds[i][0][0], atol=1e-6)
    with pytest.raises(ValueError, match='fixes none'): Learner(base.dls, deepcopy(base.model)).show_fixed(base)


def test_baseline_with_another_order_of_classes(base, learn):
    "Classes are matched by name"
    turned = [str(i) for i in reversed(range(10))]
    net = nn.Sequential(*base.model[:-1], nn.Linear(64, 10))
    with torch.no_grad(): net[-1].weight.copy_(base.model[-1].weight.flip(0)); net[-1].bias.copy_(base.model[-1].bias.flip(0))
    d = digits_dls(n_train=64)
    other = Learner(InMemoryLoaders.from_tensors((d.train_ds.x, 9-d.train_ds.y), (d.valid_ds.x, 9-d.valid_ds.y), turned, batch_tfms=list(d.valid.after_batch.fs)), net)
    a, b = learn.show_focus(base, [5, 2]), learn.show_focus(other, [5, 2])
    for p, q in zip(image_axes(a), image_axes(b)): np.testing.assert_allclose(p.images[0].get_array(), q.images[0].get_array(), atol=1e-5)
    assert shown_text(a)==shown_text(b)


def test_many_classes():
    set_seed(0)
    many = Learner(named_dls([f'class {i}' for i in range(100)]), Many())
    y = int(many.dls.valid_ds[0][1])
    fig = many.show_confusion(0)
    assert len(image_axes(fig))==11
    shown = [int(t) for t in shown_text(fig) if t.isdigit()]
    assert shown==sorted(shown) and len(shown)==10 and y in shown and set(shown)<=set(range(12))
    assert set(range(11, 2, -1))-{y}<=set(shown)                                     # the strongest of the 12 warm ones
    assert '90 of 100 classes are not shown, 2 of them warm' in all_text(fig).replace('\n', ' ')
    assert len(image_axes(many.show_confusion(0, max_classes=4)))==5
    second = Learner(many.dls, Many())
    fig = second.show_focus(many, 0)
    assert [len(a.patches) for a in bar_axes(fig)]==[10, 10]
    p = torch.cat([torch.arange(12)*.1+.1, -torch.arange(88)*.1-.1]).softmax(0)
    rest = 1-sum(a.get_width() for a in bar_axes(fig)[0].patches)
    assert shown_text(fig).count(f'90 more classes: {rest:.2f}')==2 and abs(rest-(1-p[shown].sum()))<.2


@pytest.fixture(scope='module')
def other_heads(base):
    set_seed(0)
    head = nn.Sequential(*base.model[:9], create_head(64, 10))
    return {'LeNet-5': Learner(base.dls, lenet5(10)), "fastai's head": Learner(base.dls, head)}


def test_grad_cam_for_other_heads(base, other_heads):
    for k, l in other_heads.items():
        fig = l.show_confusion([5])
        assert 'Grad-CAM' in all_text(fig), k
        s = read_scenes(base, [5])
        raw = gradcam_maps(l.model, s.xb, list(range(10)))[0]
        m = evidence(raw, (0, 1, 2))
        for c in range(10): np.testing.assert_allclose(image_axes(fig)[1+c].images[0].get_array(), overlay(s.images[0], m[c]), atol=1e-5)
        assert 'Grad-CAM' in all_text(show_focus(l, base, [5])), k                      # both networks by the same method
        with pytest.raises(ValueError, match='class maps need'): l.show_confusion([5], method='cam')
    assert 'Grad-CAM' in all_text(base.show_confusion([5], method='gradcam'))


def state(m):
    return ([o.training for o in m.modules()], [p.requires_grad for p in m.parameters()], [p.grad is None for p in m.parameters()],
            [len(o._forward_hooks)+len(o._forward_pre_hooks)+len(o._backward_hooks) for o in m.modules()], {k: v.clone() for k, v in m.state_dict().items()})


def same(a, b): return a[:4]==b[:4] and all(torch.equal(v, b[4][k]) for k, v in a[4].items())


@pytest.mark.parametrize('what', ['show_confusion', 'show_focus', 'show_fixed', 'plot_difficulty', 'pick_scenes', 'error', 'gradcam'])
def test_networks_stay_as_they_were(pair, other_heads, what):
    base, learn = pair
    lenet = other_heads['LeNet-5']
    nets = [base.model, learn.model, lenet.model]
    for n in nets:
        n.train()
        list(n.modules())[2].eval()
        next(n.parameters()).requires_grad_(False)
    before, cbs = [state(n) for n in nets], [len(l.cbs) for l in (base, learn, lenet)]
    try:
        if what=='error':
            with pytest.raises(ValueError): learn.show_focus(base, base.dls.valid_ds[0][0])
            with pytest.raises(ValueError): lenet.show_confusion([0], method='cam')
        elif what=='gradcam': lenet.show_confusion([0]); learn.show_focus(lenet, [0])
        elif what=='pick_scenes': pick_scenes(base)
        elif what=='show_confusion': base.show_confusion()
        elif what=='show_focus': learn.show_focus(base, [0, 1])
        else: getattr(learn, what)(base)
        assert all(same(a, state(n)) for a, n in zip(before, nets)) and cbs==[len(l.cbs) for l in (base, learn, lenet)]
    finally:
        for n in nets: n.requires_grad_(True)


class Remembers(nn.Module):
    "Keeps a part of its computation as an attribute in eval mode, as LeViT does"
    def __init__(self, net):
        super().__init__()
        self.net, self.scale, self.kept = net, nn.Parameter(torch.ones(1)), None
    def forward(self, x):
        if not self.training: self.kept = self.scale*2
        return self.net(x)*self.scale


@pytest.mark.parametrize('method', [None, 'gradcam'])
def test_a_network_that_remembers(base, learn, method):
    "Nothing that the figures compute stays in it: it can be copied and compared"
    net = Learner(base.dls, Remembers(deepcopy(learn.model)))
    net.show_focus(base, [0], method=method)
    net.show_contrast(base, [0], method=method)
    assert net.model.kept is None
    deepcopy(net.model)


def test_figsize(base, learn):
    for draw in (lambda **k: base.show_confusion([3], **k), lambda **k: learn.show_focus(base, [3], **k), lambda **k: learn.show_fixed(base, 1, **k), plot_difficulty,
                 lambda **k: plot_baseline_quality(pd.DataFrame(dict(epochs=[1], focusnet=[.5])), full=.5, **k)):
        assert tuple(draw(figsize=(7, 4)).get_size_inches())==(7, 4)
    small, large = base.show_confusion([3], figsize=(4, 2)), base.show_confusion([3], figsize=(16, 8))
    assert large.texts[0].get_fontsize()>2*small.texts[0].get_fontsize()             # words keep their proportion


def test_pages_on_given_axes(base, learn):
    "Figures 1 and 2 in the place of axes: the same images, bars and words as in a figure of their own, and the neighbour is left alone"
    for draw in (lambda **k: base.show_confusion([3], **k), lambda **k: learn.show_focus(base, [3], **k), lambda **k: learn.show_fixed(base, 1, **k)):
        own, fig = draw(), Figure(figsize=(12, 4))
        a, b = fig.subplots(1, 2)
        assert draw(ax=a) is fig and not b.child_axes and b.axison and not a.axison
        assert [t.get_text() for t in a.texts]==shown_text(own) and len(a.child_axes)==len(own.axes)
        for x, y in zip(a.child_axes, own.axes):
            assert bars(x)==bars(y) and all(np.array_equal(i.get_array(), j.get_array()) for i, j in zip(x.images, y.images, strict=True))
        fig.canvas.draw_idle()
        outer = a.get_window_extent()
        for o in a.child_axes:
            box = o.get_window_extent()
            assert outer.x0-1<=box.x0 and box.x1<=outer.x1+1 and outer.y0-1<=box.y0 and box.y1<=outer.y1+1


def test_pyplot_knows_nothing(base):
    import matplotlib.pyplot as plt
    plt.close('all')
    base.show_confusion([1]); plot_difficulty()
    assert not plt.get_fignums()


def test_style_sheets_do_not_change_the_figure(base):
    import matplotlib as mpl
    plain = base.show_confusion([1])
    with mpl.style.context('dark_background'): dark = base.show_confusion([1])
    assert [t.get_color() for t in plain.texts]==[t.get_color() for t in dark.texts] and dark.get_facecolor()==(1, 1, 1, 1)


# ---- print

def shapes(fig):
    "Boxes of words and pictures of a drawn page, in pixels"
    fig.draw_without_rendering()
    words = [(t.get_text(), t.get_window_extent()) for t in [*fig.texts, *(t for a in fig.axes for t in a.texts)] if t.get_text().strip()]
    return words, [('image', a.images[0].get_window_extent()) for a in image_axes(fig)]


def overlaps(fig):
    "Pairs of words, or of words and pictures, that cover each other by more than a pixel"
    words, pictures = shapes(fig)
    res = []
    for i, (s, a) in enumerate(words):
        for u, b in words[i+1:]+pictures:
            w, h = min(a.x1, b.x1)-max(a.x0, b.x0), min(a.y1, b.y1)-max(a.y0, b.y0)
            if w>1 and h>1: res.append((s, u, w, h))
        if a.x0<-1 or a.x1>fig.bbox.x1+1 or a.y0<-1 or a.y1>fig.bbox.y1+1: res.append((s, 'edge', a))
    return res


class Flat(nn.Module):
    "Logits of `n` classes that fall from .5, whatever the image; `k` are positive"
    def __init__(self, n, k, first=0):
        super().__init__()
        self.net = small_cnn(n, n_in=1)
        nn.init.zeros_(self.net[-1].weight)
        with torch.no_grad(): self.net[-1].bias.copy_(torch.cat([torch.linspace(.5, .1, k), torch.linspace(-.1, -3, n-k)]).roll(first))
    def forward(self, x): return self.net(x)


@pytest.fixture(scope='module')
def long_names(base, learn):
    names = ['Shih-Tzu', 'Rhodesian_ridgeback', 'Beagle', 'English foxhound', 'Australian terrier', 'Border terrier', 'Golden retriever', 'Old English sheepdog', 'Samoyed', 'Dingo']
    b = Learner(named_dls(names, batch_tfms=list(base.dls.valid.after_batch.fs)), base.model)
    return b, Learner(b.dls, learn.model)


@pytest.mark.parametrize('width', ['column', 5.5, 'page', 'slide'])
def test_at_a_width(long_names, width):
    "As wide as asked, words in the points they have without a width, none over another or over the edge"
    b, l = long_names
    other = next(b.dls.vocab[i] for i in range(10) if i not in [int(b.dls.valid_ds[k][1]) for k in (5, 2)])
    inches = {'column': 3.5, 'page': 7.2, 'slide': 13.3}.get(width, width)
    figs = [b.show_confusion([5, 2], width=width), l.show_focus(b, [5, 2], width=width), l.show_focus(b, 5, branches=True, width=width),
            l.show_architecture(b, 5, width=width), l.show_contrast(b, [5, 2], width=width), l.show_contrast(b, [5], against=other, width=width)]
    for i, fig in enumerate(figs):
        assert fig.get_size_inches()[0]==inches and not overlaps(fig), (i, overlaps(fig)[:5])
        assert min(t.get_fontsize() for t in [*fig.texts, *(t for a in fig.axes for t in a.texts)] if t.get_text())>=6


@pytest.mark.parametrize('n,k', [(120, 7), (120, 60), (1000, 400)])
@pytest.mark.parametrize('width', ['column', 'page', None])
def test_hundreds_of_classes(n, k, width):
    "Rows of classes, values of small entries, and a rest that is never less than nothing"
    set_seed(0)
    vocab = [f'class number {i}' for i in range(n)]
    b, l = Learner(named_dls(vocab), Flat(n, k)), Learner(named_dls(vocab), Flat(n, k, 1))
    fig = b.show_confusion(0, max_classes=24, width=width)
    assert not overlaps(fig) and len(image_axes(fig))==25 and '-0.00' not in all_text(fig)
    rows = [a for a in bar_axes(fig)][1::2]
    assert len(rows)>=2 and {t.get_text() for a in rows for t in a.texts}=={f'{1/(k+(int(b.dls.valid_ds[0][1])>=k)):.2g}'}
    assert max(p.get_height() for a in rows for p in a.patches)>.5*rows[0].get_ylim()[1]
    fig = l.show_focus(b, 0, width=width)
    assert not overlaps(fig) and '-0.00' not in all_text(fig)


def test_what_cannot_be_drawn(base, learn):
    for f in (lambda: base.show_confusion(3, width='wide'), lambda: learn.show_focus(base, 3, width=1), lambda: learn.show_contrast(base, 3, width=.5)):
        with pytest.raises(ValueError, match='width'): f()
    with pytest.raises(ValueError, match='`zoom`'): base.show_confusion(3, zoom=384)
    with pytest.raises(ValueError, match="`scene` of Figure 2"): learn.show_focus(base)
    with pytest.raises(ValueError, match="no scene 'D'"): learn.show_focus(base, scene='D')
    with pytest.raises(ValueError, match='must be a `Learner`'): learn.show_focus(base.model, scene='A')


def test_without_a_note(base, learn):
    "The rest stays where it was, and the page is shorter"
    for draw in (lambda **k: base.show_confusion([3], **k), lambda **k: learn.show_focus(base, [3], **k), lambda **k: learn.show_contrast(base, [3], **k)):
        a, b = draw(width=7), draw(width=7, note=False)
        assert shown_text(a)[:-1]==shown_text(b) and b.get_size_inches()[1]<a.get_size_inches()[1]


def test_two_classes_keep_their_note(tmp_path):
    "`savefig` of a narrow figure shows all of its note"
    set_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    d = digits_dls(n_train=64)
    two = Learner(InMemoryLoaders.from_tensors((d.train_ds.x, d.train_ds.y % 2), (d.valid_ds.x, d.valid_ds.y % 2), ['even', 'odd']), net)
    assert not overlaps(two.show_confusion([0, 1])) and not overlaps(two.show_focus(two.model, [0]))


@pytest.mark.parametrize('name', ['Ba$$in', 'x_1^2', r'\frac{', '$a$ dog'])
def test_names_are_no_mathematics(name, tmp_path):
    vocab = [name, *map(str, range(1, 10))]
    l = Learner(named_dls(vocab), small_cnn(10, n_in=1))
    i = int((l.dls.valid_ds.y==0).nonzero()[0])
    for k, fig in enumerate((l.show_confusion([i]), l.show_focus(l.model, [i], branches=True), l.show_contrast(l.model, [i], against='3'))):
        fig.savefig(tmp_path/f'{k}.png')
        assert any(name.replace('_', ' ') in t for t in [all_text(fig).replace('\n', ' ')])


# ---- Figure 1, whole

def test_the_two_branches(base, learn, valid):
    "Names, parameters, numbers of logits, warm classes, difficulty and answer are the networks'"
    zb, z, y = (o[5] for o in valid)
    words = all_text(learn.show_architecture(base, 5)).replace('\n', ' ')
    warm = int(((zb>0) | (torch.arange(10)==y)).sum())
    n = sum(p.numel() for p in base.model.parameters())
    d = float(z.softmax(0)[y]-zb.softmax(0)[y])
    for o in (f'{warm} of 10 warm', f'{n/1e3:.1f} k parameters, frozen', '10 logits', f'$d_t$ = {d:+.2f}', f'answer, {z.softmax(0).max():.0%}: {int(z.argmax())}'): assert o in words, o
    named = all_text(learn.show_architecture(base, 5, names=('Teacher', 'Student'), nets=('LeNet', 'VGG')))
    assert 'Teacher: LeNet' in named and 'Student: VGG' in named


def test_arrows_of_training_and_inference(base, learn):
    "Green dashed ones reach the loss from both branches; red solid ones lead from the image through FocusNet to the answer"
    ax = learn.show_architecture(base, 5).axes[0]
    arrows = [(to_hex(t.arrow_patch.get_edgecolor()), t.arrow_patch.get_linestyle(), t.xyann, t.xy) for t in ax.texts if getattr(t, 'arrow_patch', None)]
    green, red = ([a for a in arrows if a[0]==c] for c in (colours.green, colours.red))
    assert all(a[1]=='-' for a in red) and all(a[1]!='-' for a in green)
    assert not any(a[3][1]<1 for a in red)                                            # never through the baseline, above
    assert any(a[3][1]<1 for a in green) and any(a[3][1]>1.5 for a in green)


def test_feature_sizes_are_those_of_the_network():
    net = nn.Sequential(nn.Conv2d(1, 4, 3, 2, 1), nn.ReLU(), nn.Conv2d(4, 8, 3, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2))
    assert feature_sizes(net, torch.zeros(1, 1, 32, 32))==[(4, 16, 16), (8, 8, 8)]
    assert not any(m._forward_hooks for m in net.modules()) and network_name(net)=='2 convolutions'


def test_linked_scene(base, learn, valid):
    "The image and the classes of a scene of Figure 2, which shows only some of them"
    items = [5, 2, 700]
    two = base.show_confusion(items, max_classes=4)
    one = learn.show_focus(base, items=items, scene='b', max_classes=4)
    assert any('Scene B' in t for t in shown_text(one))
    np.testing.assert_array_equal(image_axes(one)[0].images[0].get_array(), image_axes(two)[5].images[0].get_array())
    figure_2 = [t for t in shown_text(two) if t.isdigit()][4:8]
    assert [t for t in shown_text(one) if t.isdigit()][:4]==figure_2
    assert any('Scene C' in t for t in shown_text(learn.show_focus(base, scene='C')))


def test_warm_classes_are_marked(base, learn, valid):
    "A dot beside each of the baseline's warm classes, once for both networks"
    zb, _, y = (o[5] for o in valid)
    fig = learn.show_focus(base, 5)
    dots = [t for t in fig.texts if t.get_text()=='●']
    at = {t.get_position()[1]: t.get_text() for t in fig.texts if t.get_text().isdigit()}
    assert sorted(int(at[t.get_position()[1]]) for t in dots)==[c for c in range(10) if zb[c]>0 or c==y]


# ---- contrast maps

@pytest.mark.parametrize('scale', ['network', 'pair'])
@pytest.mark.parametrize('against', [None, 3])
def test_contrast(base, learn, valid, scale, against):
    "The label's map minus the mean of the other warm ones, or minus that of a class; the difference of logits below"
    zb, z, y = (o[5] for o in valid)
    y = int(y)
    fig = learn.show_contrast(base, 5, against=against, scale=scale)
    s = read_scenes(base, [5])
    others = [c for c in range(10) if zb[c]>0 and c!=y] if against is None else [against]
    raw = [class_maps(n.model, s.xb)[0] for n in (base, learn)]
    raw = [m[y]-m[others].mean(0) for m in raw]
    tops = [m.abs().max() for m in raw] if scale=='network' else [max(m.abs().max() for m in raw)]*2
    for a, m, t in zip(image_axes(fig)[1:], raw, tops):
        c = F.interpolate((m/t)[None, None], size=(32, 32), mode='bilinear', align_corners=False)[0, 0]
        np.testing.assert_allclose(a.images[0].get_array(), contrast_overlay(s.images[0], c), atol=1e-5)
    for o in (zb, z): assert f'difference of logits {o[y]-o[others].mean():+.1f}' in shown_text(fig)
    with pytest.raises(ValueError, match='told from itself'): learn.show_contrast(base, 5, against=y)


# ---- in a notebook

notebook = """
import matplotlib.pyplot as plt
base,learn = digit_learners(n_train=60, n_epoch=1)
fixed = [0]
"""
cells = {'learn.show_focus(base, fixed); print(1)': 1, 'fig = base.show_confusion([0])': 1, 'base.show_confusion([0])': 1, 'plot_difficulty()\nlearn.show_contrast(base, fixed)': 2,
         'fig,ax = plt.subplots(); base.show_confusion([0], ax=ax)': 1, 'fig,ax = plt.subplots(1, 2)\nplot_difficulty(ax=ax[0])\nlearn.show_focus(base, fixed, ax=ax[1])': 1,
         'fig = base.show_confusion([0])\nfig': 1, 'import tempfile; _ = make_figure(3, tempfile.mkdtemp()+"/f.png")': 0, '1': 0, 'for i in range(3): learn.show_architecture(base, i)': 3}


@pytest.mark.slow
def test_shown_where_the_call_stands(kernel):
    "In a kernel, each figure is displayed once, whichever line makes it"
    kernel.shown(notebook)
    for code, n in cells.items(): assert pictures(kernel.shown(code))==n, code


def test_scripts_show_nothing(base, capsys):
    fig = base.show_confusion([1])
    assert shown(fig) is fig and unshown(fig) is fig and capsys.readouterr().out==''
