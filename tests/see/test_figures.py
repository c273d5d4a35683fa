"Figures 1-4: what is drawn is compared with what the networks say, artist by artist"
from copy import deepcopy
import xml.etree.ElementTree as ET
import numpy as np, pandas as pd, pytest, torch, torch.nn.functional as F
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from PIL import Image
from torch import nn
from fastai.vision.all import (CategoryBlock, DataBlock, ImageBlock, IndexSplitter, Learner, Normalize, PILImageBW, Resize, TfmdDL, accuracy,
                               get_image_files, imagenet_stats, load_learner, parent_label, set_seed)
from fastai.vision.learner import create_head
from focusnet_fastai.see.cam import class_maps, gradcam_maps
from focusnet_fastai.data.memory import InMemoryLoaders
from focusnet_fastai.data.digits import digits_dls
from focusnet_fastai.see.parts import colours, overlay
from focusnet_fastai.see.examples import digit_learners, digit_quality
from focusnet_fastai.see.figures import show_confusion, show_fixed, show_focus
from focusnet_fastai.app.paper_figures import make_figure
from focusnet_fastai.loss import focus_terms, multi_warm_label
from focusnet_fastai.models import lenet5, small_cnn
from focusnet_fastai.see.items import fixed_images, pick_scenes, read_scenes
from focusnet_fastai.see.items import item_list
from focusnet_fastai.see.curves import difficulty_curve, plot_baseline_quality, plot_difficulty

names = 'zero one two three four five six seven eight nine'.split()


@pytest.fixture(scope='module')
def pair(): return digit_learners(n_train=150, n_epoch=8)
@pytest.fixture(scope='module')
def base(pair): return pair[0]
@pytest.fixture(scope='module')
def learn(pair): return pair[1]


def logits(net, x):
    "An independent forward"
    net.eval()
    with torch.no_grad(): return net(torch.as_tensor(x).as_subclass(torch.Tensor))


@pytest.fixture(scope='module')
def valid(base, learn):
    "Logits of both networks and the classes for the whole validation set"
    xs, ys = zip(*[(x.as_subclass(torch.Tensor), y) for x, y in base.dls.valid])
    x = torch.cat(xs)
    return logits(base.model, x), logits(learn.model, x), torch.cat(ys).as_subclass(torch.Tensor)


def named_dls(vocab, **kw):
    "The digits with other names, or with classes of which there are no images"
    d = digits_dls(n_train=64)
    tr, va = ((o.x, o.y) for o in (d.train_ds, d.valid_ds))
    return InMemoryLoaders.from_tensors(tr, va, vocab, bs=32, **kw)


def named_learner(base): return Learner(named_dls(names, batch_tfms=list(base.dls.valid.after_batch.fs)), base.model, metrics=accuracy)


class Many(nn.Module):
    "100 classes, of which 12 are warm whatever the image"
    def __init__(self):
        super().__init__()
        self.net = small_cnn(100, n_in=1)
        nn.init.zeros_(self.net[-1].weight)
        with torch.no_grad(): self.net[-1].bias.copy_(torch.cat([torch.arange(12)*.1+.1, -torch.arange(88)*.1-.1]))
    def forward(self, x): return self.net(x)


def image_axes(fig): return [a for a in fig.axes if a.images]
def border(ax):
    o = ax.spines['left']
    assert all(s.get_edgecolor()==o.get_edgecolor() and s.get_linestyle()==o.get_linestyle() for s in ax.spines.values())
    return to_hex(o.get_edgecolor()), o.get_linestyle()
def bars(ax): return [(p.get_height(), p.get_hatch(), to_hex(p.get_edgecolor())) for p in ax.patches]
def bar_axes(fig): return [a for a in fig.axes if a.patches]
def shown_text(fig): return [t.get_text() for t in fig.texts]
def all_text(fig): return ' '.join(shown_text(fig) + [t.get_text() for a in fig.axes for t in a.texts])


# ---- Figure 2

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


def test_confusion_shows_its_own_maps_on_one_scale(base, valid):
    i = 3
    s = read_scenes(base, [i])
    raw = class_maps(base.model, s.xb)[0]
    m = (raw-raw.min())/(raw.max()-raw.min())
    m = F.interpolate(m[None], size=(32, 32), mode='bilinear', align_corners=False)[0]
    ims = image_axes(base.show_confusion(i))
    for c in range(10): np.testing.assert_allclose(ims[1+c].images[0].get_array(), overlay(s.images[0], m[c]), atol=1e-5)
    each = image_axes(base.show_confusion(i, scale='map'))
    r = raw[4]
    alone = F.interpolate(((r-r.min())/(r.max()-r.min()))[None, None], size=(32, 32), mode='bilinear', align_corners=False)[0, 0]
    np.testing.assert_allclose(each[5].images[0].get_array(), overlay(s.images[0], alone), atol=1e-5)


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
    for fig in (base.show_confusion([5, 2]), show_confusion(lb, [5, 2]), learn.show_focus(base, [5, 2]), show_focus(ll, lb, [5, 2])):
        fig.draw_without_rendering()
        boxes = [(t.get_text(), t.get_window_extent()) for t in [*fig.texts, *(t for a in fig.axes for t in a.texts)] if t.get_text().strip()]
        ims = [('image', a.get_window_extent()) for a in image_axes(fig)]
        for i, (s, a) in enumerate(boxes):
            for u, b in boxes[i+1:]+ims:
                w, h = min(a.x1, b.x1)-max(a.x0, b.x0), min(a.y1, b.y1)-max(a.y0, b.y0)
                assert w<=1 or h<=1, (s, u, w, h)
            assert a.x0>=-1 and a.x1<=fig.bbox.x1+1 and a.y0>=-1 and a.y1<=fig.bbox.y1+1, (s, a)


def test_released_rule(base, valid):
    z = valid[0][5]
    fig = base.show_confusion([5], rule='released')
    warm = (z/2).softmax(0)>.1
    warm[int(valid[2][5])] = True
    assert [border(a)[0]==colours.red for a in image_axes(fig)[1:]]==warm.tolist()


# ---- items

def png(folder, i, dls, name=None):
    x, y = dls.valid_ds[i]
    f = folder/(name or f'{i}.png')
    f.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((x[0].numpy()*255).round().astype('uint8')).save(f)
    return f


def test_items_in_every_form(base, valid, tmp_path):
    "One image as index, file, text, folder, PIL image, array, tensor, pair, and index of another dl"
    zb, _, ys = valid
    i, y = 7, int(ys[7])
    f = png(tmp_path/str(y), i, base.dls)
    x = base.dls.valid_ds[i][0]
    pil = Image.open(f)
    forms = {'index': i, 'tensor of an index': torch.tensor(i), 'file': f, 'text': str(f), 'folder': f.parent, 'list': [f], 'pil': pil, 'PILImageBW': PILImageBW.create(f),
             'array': np.asarray(pil), 'tensor': x, 'pair with name': (f, str(y)), 'pair with index': (x, y), 'item of a dataset': base.dls.valid_ds[i]}
    for k, o in forms.items():
        s = read_scenes(base, o)
        assert s.xb.shape==(1, 1, 32, 32) and s.images.shape==(1, 32, 32, 3), k
        known = k not in ('pil', 'PILImageBW', 'array', 'tensor')
        assert s.targets==[y if known else -1], k
        np.testing.assert_allclose(logits(base.model, s.xb), zb[[i]], atol=.15, err_msg=k)      # a file holds bytes
        check_figure_2(base.show_confusion(o), logits(base.model, s.xb), [y if known else None])
    assert read_scenes(base, [pil, f], targets=[str(y), None]).targets==[y, -1]
    x0, y0 = base.dls.train_ds[3]
    s = read_scenes(base, [3], dl=base.dls.train)
    assert s.targets==[int(y0)] and np.allclose(s.images[0, ..., 0], x0[0], atol=1e-6)
    assert read_scenes(base, [9, 4, 9]).targets==[int(ys[k]) for k in (9, 4, 9)]


def test_what_items_are_not(base, learn, tmp_path):
    (tmp_path/'empty').mkdir()
    x = base.dls.valid_ds[0][0]
    for items, error, words in (([], ValueError, 'items` is empty'), (797, IndexError, 'holds 797 images'), (-1, IndexError, 'no image -1'), (.5, TypeError, 'float'),
                                (tmp_path/'no.png', FileNotFoundError, 'no.png'), (tmp_path/'empty', ValueError, 'holds no images'), ([3, x], TypeError, 'not both'),
                                ([(x, 'dog')], ValueError, "'dog' is none of the 10 classes"), ([(x, 10)], ValueError, '10'), ([(x, 1, 2)], ValueError, '3 parts')):
        with pytest.raises(error, match=words): base.show_confusion(items)
    with pytest.raises(ValueError, match='1 items, but 2 targets'): base.show_confusion(x, targets=[1, 2])
    with pytest.raises(ValueError, match='has no class'): learn.show_focus(base, x)
    for kw, words in ((dict(scale='x'), 'scale'), (dict(method='x'), 'method'), (dict(alpha=2), 'alpha'), (dict(max_classes=1), 'max_classes'), (dict(rule='x'), 'rule')):
        with pytest.raises(ValueError, match=words): base.show_confusion(3, **kw)


def test_pictures_of_a_folder_learner(tmp_path):
    "Three channels, files read by a DataBlock: normalised for the network, not for the eye; random crops stay out"
    g = np.random.default_rng(0)
    for c in ('cat', 'dog'):
        for k in range(4):
            (tmp_path/c).mkdir(exist_ok=True)
            Image.fromarray(g.integers(0, 255, (40, 40, 3), dtype='uint8')).save(tmp_path/c/f'{k}.png')
    files = get_image_files(tmp_path).sorted()
    dls = DataBlock((ImageBlock, CategoryBlock), get_y=parent_label, splitter=IndexSplitter([0, 4]), item_tfms=Resize(32, method='squish'),
                    batch_tfms=Normalize.from_stats(*imagenet_stats)).dataloaders(files, bs=4, num_workers=0)
    set_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2))
    cnn = Learner(dls, net)
    s = read_scenes(cnn, files[:2])
    want = np.stack([np.asarray(Image.open(f).resize((32, 32), Image.BILINEAR)) for f in files[:2]])/255
    np.testing.assert_allclose(s.images, want, atol=.01)
    mean, sd = (np.array(o) for o in imagenet_stats)
    np.testing.assert_allclose(s.xb.movedim(1, -1), (want-mean)/sd, atol=.05)
    assert s.targets==[0, 0] and read_scenes(cnn, [0]).targets==[int(dls.valid_ds[0][1])]
    assert read_scenes(cnn, [0], dl=dls.train).xb.shape==(1, 3, 32, 32)
    check_figure_2(cnn.show_confusion(files[:2]), logits(net, s.xb), [0, 0], n_classes=2)
    array, pil = np.asarray(Image.open(files[0])), Image.open(files[0])
    for o in (array, pil, torch.as_tensor(array).movedim(-1, 0)): np.testing.assert_allclose(read_scenes(cnn, o).images[0], s.images[0], atol=.02)


# ---- Figure 1

def test_focus(base, learn, valid):
    zb, z, y = valid
    idxs = fixed_images(learn, base)[:2]
    fig = learn.show_focus(base, idxs)
    ims, bs = image_axes(fig), bar_axes(fig)
    assert len(ims)==6*len(idxs) and len(bs)==2*len(idxs)                            # the picture, four maps and a colour bar each
    assert '(red, solid' in all_text(fig).replace('\n', ' ') and 'share one colour scale' in all_text(fig).replace('\n', ' ')
    for k, i in enumerate(idxs):
        wrong, true = int(zb[i].argmax()), int(y[i])
        s = read_scenes(base, [i])
        raw = torch.stack([class_maps(n.model, s.xb)[0, [wrong, true]] for n in (base, learn)])      # independent of the figure
        m = (raw-raw.min())/(raw.max()-raw.min())
        m = F.interpolate(m, size=(32, 32), mode='bilinear', align_corners=False)
        maps = [a for a in ims[6*k:6*k+6] if border(a)[0] in (colours.red, colours.green)]
        assert [border(a)[0] for a in maps]==[colours.green, colours.red]*2
        for a, want in zip(maps, m.flatten(0, 1)): np.testing.assert_allclose(a.images[0].get_array(), overlay(s.images[0], want), atol=1e-5)
        styles = [border(a)[1] for a in maps]
        assert styles[0]!=styles[1] and styles[1]=='-' and styles[:2]==styles[2:]     # black and white print
        for a, logit in zip(bs[2*k:2*k+2], (zb[i], z[i])):
            np.testing.assert_allclose([p.get_width() for p in a.patches], logit.softmax(0).tolist(), atol=1e-4)
            hatches = {c: p.get_hatch() for c, p in enumerate(a.patches)}
            assert hatches[wrong] and hatches[true] and hatches[wrong]!=hatches[true] and not any(h for c, h in hatches.items() if c not in (wrong, true))
        scale = next(a for a in ims[6*k:6*k+6] if a.get_yticklabels() and border(a)[0] not in (colours.red, colours.green))
        assert [t.get_text() for t in scale.get_yticklabels()]==[f'{v:.2g}' for v in (raw.min(), raw.max())]
    text = all_text(fig)
    assert 'Baseline: wrong' in text and 'FocusNet: right' in text


def test_focus_where_the_baseline_is_right(base, learn, valid):
    zb, _, y = valid
    i = int((zb.argmax(1)==y).nonzero()[0])
    rival = int(zb[i].topk(2).indices[1])
    s = read_scenes(base, [i])
    maps = [a for a in image_axes(learn.show_focus(base, i)) if border(a)[0]==colours.green]
    raw = torch.stack([class_maps(n.model, s.xb)[0, [rival, int(y[i])]] for n in (base, learn)])
    m = F.interpolate((raw-raw.min())/(raw.max()-raw.min()), size=(32, 32), mode='bilinear', align_corners=False)
    for a, want in zip(maps, m[:, 0]): np.testing.assert_allclose(a.images[0].get_array(), overlay(s.images[0], want), atol=1e-5)


def test_fixed_images_by_confidence(base, learn, valid):
    zb, z, y = valid
    mine = [i for i in range(len(y)) if zb[i].argmax()!=y[i] and z[i].argmax()==y[i]]
    mine.sort(key=lambda i: -zb[i].softmax(0).max().item())
    assert len(mine)>=4 and fixed_images(learn, base)==mine
    fig = learn.show_fixed(base, 3)
    pictures = [a for a in image_axes(fig) if border(a)[0] not in (colours.red, colours.green) and a.images[0].get_array().shape[:2]==(32, 32)]
    assert len(pictures)==3
    for a, i in zip(pictures, mine): np.testing.assert_allclose(a.images[0].get_array()[..., 0], base.dls.valid_ds[i][0][0], atol=1e-6)
    train = fixed_images(learn, base, base.dls.train)                                # in the order of the dataset although it is shuffled
    for i in train:
        s = read_scenes(base, [i], dl=base.dls.train)
        assert logits(base.model, s.xb).argmax()!=s.targets[0] and logits(learn.model, s.xb).argmax()==s.targets[0]
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


# ---- Figure 3

def test_figure_3_is_the_loss():
    fig = plot_difficulty(probs=(.3, .7), n_classes=5)
    curves = [l for l in fig.axes[0].lines if len(l.get_xdata())>100]
    assert len(curves)==2 and curves[0].get_linestyle()!=curves[1].get_linestyle()
    for p, l in zip((.3, .7), curves):
        d, loss = np.asarray(l.get_xdata()), np.asarray(l.get_ydata())
        z = torch.log(torch.tensor([p]+[(1-p)/4]*4, dtype=torch.float64))
        pb = torch.tensor(p-d)
        zb = torch.log(torch.cat([pb[:, None], ((1-pb)/4)[:, None].expand(-1, 4)], 1))
        want = focus_terms(z.expand(len(d), -1), zb, torch.zeros(len(d), dtype=torch.long))['cls']
        np.testing.assert_allclose(loss, want, atol=1e-6)
        others = (1-p)*np.exp(-d/4)                                                    # Equation 9 by hand: the d of the others is -d_t/4 each
        np.testing.assert_allclose(loss, -np.log(p*np.exp(d)/(p*np.exp(d)+others)), atol=1e-6)
        assert (np.diff(loss[np.argsort(d)])<0).all()                                 # smaller the easier
    assert [t.get_text().split(':')[0] for t in fig.axes[0].texts if ':' in t.get_text()]==['difficult', 'easy']


def test_figure_3_of_images(base, learn, valid):
    zb, z, y = valid
    fig = learn.plot_difficulty(base)
    points = np.concatenate([np.asarray(c.get_offsets()) for c in fig.axes[0].collections])
    i = torch.arange(len(y))
    want = np.stack([(z.softmax(1)-zb.softmax(1))[i, y], focus_terms(z, zb, y)['cls']], 1)
    assert len(points)==len(want)
    np.testing.assert_allclose(points[np.lexsort(points.T)], want[np.lexsort(want.T)], atol=1e-4)
    assert len({len(c.get_paths()[0].vertices) for c in fig.axes[0].collections})==2   # two shapes of markers
    with pytest.raises(ValueError, match='needs both'): plot_difficulty(learn)
    with pytest.raises(ValueError, match='between 0 and 1'): plot_difficulty(probs=(1.,))


# ---- Figure 4

def test_figure_4_with_seeds():
    df = pd.DataFrame([dict(epochs=e, seed=s, baseline=.1*e, focusnet=.6+.01*e+.02*s, full=.65+.01*s) for e in (1, 3, 6) for s in (0, 1)])
    fig = plot_baseline_quality(df, title='digits')
    ax = fig.axes[0]
    line = ax.containers[0].lines[0]
    np.testing.assert_allclose(np.array([line.get_xdata(), line.get_ydata()], dtype=float), [[1, 3, 6], [61+1, 63+1, 66+1]])
    segments = ax.containers[0].lines[2][0].get_segments()
    np.testing.assert_allclose([s[1][1]-s[0][1] for s in segments], 2*np.std([0, 2], ddof=1), rtol=1e-5)
    dashed = [l for l in ax.lines if l.get_linestyle()=='--']
    assert len(dashed)==1 and np.allclose(dashed[0].get_ydata(), 65.5) and line.get_linestyle()=='-'
    legend = ax.get_legend()
    assert '2 seeds' in legend.get_title().get_text() and 'standard deviation' in legend.get_title().get_text()
    assert [t.get_text() for t in ax.get_xticklabels()]==['1\n10.0%', '3\n30.0%', '6\n60.0%'] and ax.get_title()=='digits'


def test_figure_4_without_seeds(base, valid):
    df = pd.DataFrame(dict(epochs=[1, 10, 60], focusnet=[.5, .55, .6]))
    ax = plot_baseline_quality(df, full=.58).axes[0]
    assert ax.get_legend().get_title().get_text()=='one seed' and [t.get_text() for t in ax.get_xticklabels()]==['1', '10', '60']
    assert '58.00 %' in ' '.join(t.get_text() for t in ax.get_legend().get_texts())
    mine = base.plot_baseline_quality(df).axes[0]
    acc = (valid[0].argmax(1)==valid[2]).float().mean().item()*100
    assert np.allclose([l.get_ydata() for l in mine.lines if l.get_linestyle()=='--'], acc, atol=1e-3)


@pytest.mark.parametrize('df,words', [(dict(epochs=[], focusnet=[]), 'empty'), (dict(epochs=[1], focusnet=[.5]), 'lacks full'), (dict(epochs=[1], full=[.5]), 'lacks focusnet'),
                                      (dict(epochs=[1], focusnet=[55.], full=[.5]), 'holds 55'), (dict(epochs=[1, 1], seed=[0, 0], focusnet=[.5, .5], full=[.5, .5]), 'same')])
def test_mistakes_in_the_table(df, words):
    with pytest.raises(ValueError, match=words): plot_baseline_quality(pd.DataFrame(df))


def test_figure_4_of_digits():
    df = digit_quality(epochs=(1,), seeds=1, n_train=60, n_epoch=2)
    assert list(df.columns)==['epochs', 'seed', 'baseline', 'focusnet', 'full'] and len(df)==1
    assert df[['baseline', 'focusnet', 'full']].stack().between(0, 1).all()
    pd.testing.assert_frame_equal(df, digit_quality(epochs=(1,), seeds=1, n_train=60, n_epoch=2))


# ---- many classes, other heads, other channels

def test_many_classes():
    set_seed(0)
    many = Learner(named_dls([f'class {i}' for i in range(100)]), Many())
    y = int(many.dls.valid_ds[0][1])
    fig = many.show_confusion(0)
    assert len(image_axes(fig))==11
    shown = [int(t) for t in shown_text(fig) if t.isdigit()]
    assert shown==sorted(shown) and len(shown)==10 and y in shown and set(shown)<=set(range(12))
    assert set(range(11, 2, -1))-{y}<=set(shown)                                     # the strongest of the 12 warm ones
    assert '90 of 100 classes are not shown, 2 of them warm' in shown_text(fig)
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
        m = F.interpolate(((raw-raw.min())/(raw.max()-raw.min()))[None], size=(32, 32), mode='bilinear', align_corners=False)[0]
        for c in range(10): np.testing.assert_allclose(image_axes(fig)[1+c].images[0].get_array(), overlay(s.images[0], m[c]), atol=1e-5)
        assert 'Grad-CAM' in all_text(show_focus(l, base, [5])), k                      # both networks by the same method
        with pytest.raises(ValueError, match='class maps need'): l.show_confusion([5], method='cam')
    assert 'Grad-CAM' in all_text(base.show_confusion([5], method='gradcam'))


# ---- networks are left alone

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


# ---- size, axes, files

def test_figsize(base, learn):
    for draw in (lambda **k: base.show_confusion([3], **k), lambda **k: learn.show_focus(base, [3], **k), lambda **k: learn.show_fixed(base, 1, **k), plot_difficulty,
                 lambda **k: plot_baseline_quality(pd.DataFrame(dict(epochs=[1], focusnet=[.5])), full=.5, **k)):
        assert tuple(draw(figsize=(7, 4)).get_size_inches())==(7, 4)
    small, large = base.show_confusion([3], figsize=(4, 2)), base.show_confusion([3], figsize=(16, 8))
    assert large.texts[0].get_fontsize()>2*small.texts[0].get_fontsize()             # words keep their proportion


def test_on_given_axes():
    fig = Figure()
    a, b = fig.subplots(1, 2)
    assert plot_difficulty(ax=a) is fig and plot_baseline_quality(pd.DataFrame(dict(epochs=[1, 2], focusnet=[.5, .6])), full=.5, ax=b) is fig
    assert a.lines and b.lines


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


@pytest.mark.parametrize('number', [1, 2, 3, 4])
def test_saved_as_png_and_svg(pair, tmp_path, number):
    base, learn = pair
    items = pd.DataFrame(dict(epochs=[1, 2], focusnet=[.5, .6], full=[.5, .5])) if number==4 else None
    args = dict(items=items) if number==4 else dict(base=base, learn=learn)
    f = make_figure(number, tmp_path/'f.png', n=2, **args)
    im = np.asarray(Image.open(f).convert('RGB'))
    assert f==tmp_path/'f.png' and min(im.shape[:2])>300 and (im[0]==255).all() and im.std()>10       # a white margin, and something on it
    svgs = [make_figure(number, tmp_path/f'{k}.svg', n=2, **args).read_bytes() for k in 'ab']
    root = ET.fromstring(svgs[0])
    assert root.tag.endswith('svg') and len(svgs[0])<2_000_000
    assert svgs[0]==svgs[1]                                                            # no dates, no random names


def test_black_and_white():
    "Printed in grey, the brightness of a map grows with its value, more than the image below changes it"
    def shade(image, v): return overlay(np.full((4, 4, 3), image), np.full((4, 4), v)).mean(axis=(0, 1)) @ [.299, .587, .114]
    for image in (0., .5, 1.): assert (np.diff([shade(image, v) for v in np.linspace(0, 1, 20)])>0).all()
    assert shade(0., 1.)>2*shade(1., 0.)


# ---- make_figure

def test_make_figure_of_exported_learners(pair, tmp_path):
    "Learners from files hold no images: a folder gives them; of many images the telling ones are chosen"
    base, learn = pair
    for l, f in ((base, 'base.pkl'), (learn, 'learn.pkl')):
        path, l.path = l.path, tmp_path
        l.export(f)
        l.path = path
    b, l = load_learner(tmp_path/'base.pkl'), load_learner(tmp_path/'learn.pkl')
    fixed = fixed_images(learn, base)[:3]
    for i in [*range(20), *fixed]: png(tmp_path/'images'/str(int(base.dls.valid_ds[i][1])), i, base.dls)
    for number in (1, 2, 3): assert make_figure(number, tmp_path/'f.png', b, l, tmp_path/'images', n=2).stat().st_size>5000
    with pytest.raises(ValueError, match='holds no images'): make_figure(1, tmp_path/'f.png', b, l)
    with pytest.raises(IndexError, match='loaded from a file'): b.show_confusion([0])


def test_make_figure_mistakes(pair, tmp_path):
    base, learn = pair
    for args, words in (((5, 'f.png'), 'Figures 1, 2, 3 and 4'), ((1, 'f.png', base), 'only the baseline'), ((3, 'f.png', None, learn), 'only the FocusNet'), ((2, 'f.doc', base), 'must end'),
                        ((4, 'f.png', base), 'many trainings')):
        with pytest.raises(ValueError, match=words): make_figure(args[0], tmp_path/args[1], *args[2:])
    with pytest.raises(FileNotFoundError, match='no folder'): make_figure(3, tmp_path/'no'/'f.png')
    assert not list(tmp_path.iterdir())


def test_choice_of_scenes(base, valid):
    "Few warm classes, all different, the last two of one class with different labels"
    zb, _, y = valid
    picked = pick_scenes(base, 3)
    warm = multi_warm_label(zb, y)>0
    assert len(set(picked))==3 and y[picked[1]]==y[picked[2]] and (warm[picked[1]]!=warm[picked[2]]).any()
    assert all(2<=warm[i].sum()<=4 for i in picked)
    assert picked==pick_scenes(base, 3) and len(pick_scenes(base, 1))==1
