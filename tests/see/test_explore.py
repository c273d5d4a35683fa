"The explorer of confused pairs: its core without a panel, and the panel without a browser"
import io
from copy import deepcopy
import numpy as np, pandas as pd, pytest, torch
from matplotlib.text import Text
from PIL import Image
from torch import nn, tensor
from fastai.vision.all import (ImageDataLoaders, Learner, Normalize, PILImage, get_image_files, imagenet_stats,
                               parent_label, set_seed)
from focusnet_fastai.see.cam import class_maps
from focusnet_fastai.data.digits import digits_dls
from focusnet_fastai.see.examples import digit_learners
from focusnet_fastai.see.confused import confused_pairs
from focusnet_fastai.see.explore import ConfusionExplorer
from focusnet_fastai.see.panel import explore
from focusnet_fastai.data.labels import read_labels, write_labels
from focusnet_fastai.loss import multi_warm_label
from focusnet_fastai.models import lenet5
from helpers import fresh

pytestmark = pytest.mark.slow  # as a whole; `make quick` leaves it out


@pytest.fixture(scope='module')
def nets(): return digit_learners(n_train=150, n_epoch=5)


@pytest.fixture
def ex(nets): return ConfusionExplorer(nets[1], nets[0])


@pytest.fixture
def panel(nets):
    pytest.importorskip('anywidget', reason="anywidget is not installed: pip install 'anywidget>=0.9'")
    return explore(nets[1], nets[0])


def pixels(png): return np.asarray(Image.open(io.BytesIO(png)).convert('RGB')).astype(int)


def test_pairs_are_those_of_the_comparison(ex, nets):
    "Counts and order agree with `Comparison.most_confused`; `either` counts images, not mistakes"
    c = nets[1].compare(nets[0])
    theirs = c.most_confused(10**6).set_index(['true', 'predicted'])
    for by in ('baseline', 'focusnet'):
        ours = ex.look_at(by).pairs
        assert ours[by].is_monotonic_decreasing and (ours[by] > 0).all()
        assert ours[by].sum() == ((c.base_pred if by == 'baseline' else c.pred) != c.y).sum()
        for o in ours.itertuples(): assert tuple(theirs.loc[(o.true, o.predicted)]) == (o.baseline, o.focusnet)
    both = ex.look_at('either').pairs
    for o in both.itertuples():
        t, p = int(o.true), int(o.predicted)
        assert o.either == ((c.y == t) & ((c.pred == p) | (c.base_pred == p))).sum() == len(ex.pick((o.true, o.predicted)).images)


@pytest.mark.parametrize('by', ['baseline', 'focusnet', 'either'])
def test_images_of_every_pair(ex, by):
    "Each is of the true class and taken for the other by whom it should, the surest first"
    c = ex.comparison
    nets = [(c.base_pred, c.zb)]*(by != 'focusnet') + [(c.pred, c.z)]*(by != 'baseline')
    for row in range(len(ex.look_at(by).pairs)):
        ex.pick(row)
        assert len(ex.images) == ex.pairs[by][row]
        sure = [max(float(z[i].softmax(0)[ex.wrong]) for pred, z in nets if pred[i] == ex.wrong) for i in ex.images]
        assert all(c.y[i] == ex.true for i in ex.images) and sure == sorted(sure, reverse=True)


def test_a_walk(ex):
    ex.pick(1)
    first, images = ex.index, list(ex.images)
    assert ex.step(-1).index == images[-1] and ex.step().index == first and ex.step(len(images) + 1).index == images[1]
    assert ex.go(2).position == 2 and ex.pick(0).position == 0
    for wrong in (lambda: ex.go(len(ex.images)), lambda: ex.go(-1), lambda: ex.pick(len(ex.pairs)), lambda: ex.mark(index=10**6)):
        with pytest.raises(IndexError, match='There is no'): wrong()
    with pytest.raises(ValueError, match='no pair 0 → 0'): ex.pick(('0', '0'))
    with pytest.raises(ValueError, match="'nobody'"): ex.look_at('nobody')


def test_sets_of_classes(ex):
    "A set holds the answer, and nine of ten hold the label; few images promise nothing"
    c = ex.comparison
    words = [ex.set_words(i).split(' or ') for i in range(len(c.y))]
    assert all(w[0] == ex.vocab[int(p)] for w, p in zip(words, c.pred))
    assert abs(np.mean([ex.vocab[int(t)] in w for w, t in zip(words, c.y)])-ex.coverage) < .05
    assert f"FocusNet's {ex.coverage:.0%} set: {ex.set_words(ex.index)}" in ex.summary


def test_marks(ex):
    "Marks survive another pair, are taken away again, and name label and answers"
    assert list(ex.marked.columns) == ['index', 'true', 'baseline', 'focusnet', 'label'] and len(ex.marked) == 0
    a = ex.pick(2).mark().index
    b = ex.pick(0).mark().index
    df, c = ex.marked, ex.comparison
    assert df['index'].tolist() == sorted([a, b])
    for o in df.itertuples():
        assert (o.true, o.baseline, o.focusnet) == tuple(str(int(v[o[1]])) for v in (c.y, c.base_pred, c.pred))
    assert ex.mark(False).marked['index'].tolist() == [a] and not ex.is_marked()


@pytest.mark.parametrize('against', ['warm', 'wrong'])
def test_maps_are_those_of_the_networks(nets, against):
    "The drawn class maps and contrast maps, undone to raw ones, are those that `cam` gives for the two networks"
    ex, (base, learn) = ConfusionExplorer(nets[1], nets[0], against=against), nets
    o = ex.current
    def up(maps): return nn.functional.interpolate(maps, size=(32, 32), mode='bilinear', align_corners=False)[0]
    x = torch.cat([b[0] for b in learn.dls.valid]).as_subclass(torch.Tensor)[ex.index][None]
    label = multi_warm_label(base.model.eval()(x).detach(), tensor([ex.true]))
    warm = [j for j in label[0].nonzero()[:, 0].tolist() if j != ex.true]
    others = warm if against == 'warm' else [ex.wrong]
    for i, net in enumerate((base.model, learn.model)):
        maps = class_maps(net, x).detach()
        torch.testing.assert_close(o.cams[i]*o.tops[i], up(maps[:, [ex.wrong, ex.true]].clamp(min=0)), atol=1e-4, rtol=1e-4)
        contrast = maps[:, [ex.true]]-maps[:, others].mean(1, keepdim=True)
        torch.testing.assert_close(o.contrasts[i]*o.limits[i], up(contrast)[0], atol=1e-4, rtol=1e-4)
    assert torch.equal(o.label, label[0]) and o.warm == warm and o.others == others


def test_picture_follows_every_change(ex):
    "Another image, strength or mark: another picture; the same place: the same picture, also after a detour"
    first = ex.png()
    assert (pixels(ex.step().png()) != pixels(first)).any() and ex.step(-1).png() == first
    ex.alpha = 0.
    plain = pixels(ex.png())
    assert (plain != pixels(first)).any()
    ex._drawn = (None, None)  # drawn anew and not from the last figure
    assert (pixels(ex.png()) == plain).all()
    ex.alpha = .85
    assert ex.png() == first
    red = (pixels(ex.mark().png()) != pixels(first)).any(-1)
    assert red.sum() > 200 and pixels(ex.png())[red].mean(0).argmax() == 0
    with pytest.raises(ValueError, match='alpha'): ex.figure(alpha=1.5)


def test_networks_are_left_as_found(nets):
    base, learn = nets
    learn.model.train()
    learn.model[0].eval()
    modes, before = [m.training for m in learn.model.modules()], {k: v.clone() for k, v in learn.model.state_dict().items()}
    ConfusionExplorer(learn, base).png()
    assert modes == [m.training for m in learn.model.modules()] and all(torch.equal(v, before[k]) for k, v in learn.model.state_dict().items())


def test_gradcam_and_other_networks(nets):
    "Where one network has no exact maps, or maps of another size, both are still drawn"
    set_seed(0)
    other = Learner(nets[0].dls, lenet5(10))
    ex = ConfusionExplorer(other, nets[0], by='focusnet')
    assert ex.current.method.startswith('Grad-CAM') and ex.current.cams[0].shape == (2, 32, 32) and pixels(ex.png()).std() > 0
    coarse = Learner(nets[0].dls, nn.Sequential(nn.Conv2d(1, 8, 3, 4, 1), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10)))
    assert ConfusionExplorer(coarse, nets[0]).current.method == 'CAM'


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision_baseline(nets, dtype):
    "Computed in its own precision, shown like any other"
    half = Learner(nets[0].dls, deepcopy(nets[0].model).to(dtype))
    ex = ConfusionExplorer(nets[1], half)
    want = half.model.eval()(torch.cat([b[0] for b in nets[1].dls.valid]).as_subclass(torch.Tensor).to(dtype)).float()
    assert (ex.comparison.base_pred == want.argmax(1)).float().mean() > .99 and ex.comparison.zb.dtype == torch.float32
    assert pixels(ex.png()).std() > 0 and all(p.dtype == dtype for p in half.model.parameters())


def test_a_dl_with_other_classes_order(nets):
    "The labels of a dl whose vocab has another order are translated by name"
    base, learn = nets
    data = learn.dls.valid_ds
    back = [str(i) for i in reversed(range(10))]
    dls = type(learn.dls).from_tensors((data.x, 9-data.y), (data.x, 9-data.y), back, bs=64, after_batch=learn.dls.valid.after_batch.fs)
    ex = ConfusionExplorer(learn, base, dls.valid)
    pd.testing.assert_frame_equal(ex.pairs, ConfusionExplorer(learn, base).pairs)
    assert ex.current.image.shape == (32, 32, 3)


def test_training_set_in_its_own_order(nets):
    base, learn = nets
    ex = ConfusionExplorer(learn, base, learn.dls.train, by='either')
    assert torch.equal(ex.comparison.y, learn.dls.train_ds.y)


def test_nothing_to_explore(nets):
    "No mistakes, no labels, no dl"
    base, learn = nets
    right = [i for i, (a, b, y) in enumerate(zip(*(getattr(learn.compare(base), o).tolist() for o in ('pred', 'base_pred', 'y')))) if a == b == y]
    dl = learn.dls.test_dl([learn.dls.valid_ds[i] for i in right[:8]], with_labels=True)
    with pytest.raises(ValueError, match='Neither network makes a mistake on these 8 images'): ConfusionExplorer(learn, base, dl)
    with pytest.raises(ValueError, match='no labels'): ConfusionExplorer(learn, base, learn.dls.test_dl([learn.dls.valid_ds[0][0]]))
    with pytest.raises(TypeError, match='TfmdDL'): ConfusionExplorer(learn, base, [0, 1])


@pytest.fixture(scope='module')
def photos(tmp_path_factory):
    "Two networks that know nothing, for coloured images in files, wider than high and normalised; long class names"
    path = tmp_path_factory.mktemp('photos')
    d = digits_dls(n_train=64).train_ds
    names = ['Old English sheepdog', 'Rhodesian_ridgeback', 'a name of a class that needs more than one line', 'dingo']
    for i in range(64):
        f = path/names[int(d.y[i]) % 4]/f'{i}.png'
        f.parent.mkdir(exist_ok=True)
        a = (d[i][0][0].numpy()*255).astype(np.uint8)
        Image.fromarray(np.stack([a, a//2, 255-a], -1)).resize((60, 40)).save(f)
    dls = ImageDataLoaders.from_path_func(path, get_image_files(path).sorted(), parent_label, valid_pct=.5, seed=0, bs=8, num_workers=0,
                                          batch_tfms=Normalize.from_stats(*imagenet_stats))
    def learner(seed):
        set_seed(seed)
        return Learner(dls, nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)))
    return learner(0), learner(1)


def test_files(photos):
    "RGB images from files: shown as stored, and marked ones by their path"
    base, learn = photos
    ex = ConfusionExplorer(learn, base, by='either').mark()
    (row,) = ex.marked.itertuples()
    assert row.path.is_file() and row.path.parent.name == row.true and row.path == learn.dls.valid.items[row[1]]
    shown = np.asarray(PILImage.create(row.path))/255
    np.testing.assert_allclose(ex.current.image, shown, atol=5e-3)
    assert pixels(ex.png()).std() > 0 and row.true in ex.summary


def test_paths_from_a_table(photos, tmp_path):
    "Items that are rows of a DataFrame"
    base, learn = photos
    path = learn.dls.path
    df = pd.DataFrame([{'name': str(f.relative_to(path)), 'label': f.parent.name} for f in learn.dls.valid.items])
    dls = ImageDataLoaders.from_df(df, path, valid_pct=.5, seed=0, bs=8, num_workers=0, batch_tfms=Normalize.from_stats(*imagenet_stats))
    ex = ConfusionExplorer(learn, base, dls.valid, by='either').mark()
    assert ex.marked.path[0].is_file() and ex.marked.path[0].parent.name == ex.marked.true[0]


def asked(panel, what, value):
    "What a click sends; what the browser then shows"
    panel.widget.ask = dict(what=what, value=value, n=panel.widget.ask.get('n', 0) + 1)
    return panel.widget.view


def test_panel(panel):
    "Every control acts, changes the picture, and the others follow"
    ex, seen = panel.explorer, [panel.widget.picture]
    def changed():
        seen.append(panel.widget.picture)
        assert seen[-1] not in seen[:-1] and seen[-1][:4] == b'\x89PNG'
    v = asked(panel, 'pair', 2)
    changed()
    assert (ex.pair, v['pair'], v['images']) == (2, 2, len(ex.images))
    assert asked(panel, 'step', 1)['position'] == ex.position == 1
    changed()
    asked(panel, 'alpha', .3)
    changed()
    asked(panel, 'against', 'wrong')
    changed()
    assert ex.current.others == [ex.wrong]
    assert asked(panel, 'zoom', 2)['zoom'] == 2 and '64x64' in ex.current.method
    changed()
    assert not v['wrong'] and v['label'] == ex.vocab[ex.wrong]
    v = asked(panel, 'mark', dict(wrong=True, label='drop'))
    changed()
    assert panel.marked['index'].tolist() == [ex.index] and (v['marks'], v['label']) == (1, 'drop') and 'Marked' in v['summary']
    assert not asked(panel, 'step', -1)['wrong'] and asked(panel, 'step', 1)['wrong']
    assert panel.widget.picture == seen[-1]
    assert asked(panel, 'mark', dict(wrong=False, label='drop'))['marks'] == 0 and len(panel.marked) == 0
    asked(panel, 'image', len(ex.images)-1)
    assert asked(panel, 'step', 1)['position'] == 0
    assert asked(panel, 'by', 'focusnet')['by'] == ex.by == 'focusnet'
    assert len(panel.widget.pairs) == len(panel.pairs) and panel.widget.pairs[0] == panel.pairs.iloc[0][['true', 'predicted', 'baseline', 'focusnet']].tolist()


def test_every_pair_is_listed(nets):
    "Also the last of many"
    panel = nets[1].explore(nets[0], by='either', names=('Teacher', 'Student'))
    assert len(panel.widget.pairs) == len(confused_pairs(panel.comparison, 'either')) == panel.widget.view['pairs']
    assert panel.widget.who[:2] == [['Teacher', 'baseline'], ['Student', 'focusnet']] and panel.widget.classes == panel.vocab
    assert asked(panel, 'pair', len(panel.pairs)-1)['pair'] == len(panel.pairs)-1 and not panel.widget.view['error']


def test_panel_says_what_went_wrong(photos):
    "A file that is gone is named in the panel, which goes on working"
    pytest.importorskip('anywidget')
    base, learn = photos
    panel = explore(learn, base, by='either', labels=None)
    ex = panel.explorer
    while len(ex.images) < 2: asked(panel, 'pair', ex.pair+1)
    f = learn.dls.valid.items[ex.images[1]]
    f.rename(f.with_suffix('.away'))
    try: v = asked(panel, 'step', 1)
    finally: f.with_suffix('.away').rename(f)
    assert 'No such file' in v['error'] and f.name in v['error'] and panel.widget.picture == b''
    assert not asked(panel, 'step', -1)['error'] and panel.widget.picture[:4] == b'\x89PNG'


def test_marks_are_kept(photos, tmp_path):
    "As they are made, in a table that folder_dls reads; rows of other images stay; the next explorer has them"
    base, learn = photos
    kept = write_labels(tmp_path/'labels.csv', [('elsewhere/1.png', 'dingo')])
    ex = ConfusionExplorer(learn, base, by='either', labels=kept).mark()
    ex.step().mark(label='drop')
    rows = read_labels(kept)
    names = [f.relative_to(learn.dls.valid.items[0].parent.parent).as_posix() for f in learn.dls.valid.items]
    assert rows[0] == ('elsewhere/1.png', 'dingo')
    assert dict(rows[1:]) == {names[ex.images[0]]: ex.vocab[ex.wrong], names[ex.images[1]]: 'drop'}
    again = ConfusionExplorer(learn, base, by='either', labels=kept)
    pd.testing.assert_frame_equal(again.marked, ex.marked)
    again.go(0).mark(False)
    assert len(read_labels(kept)) == 2
    with pytest.raises(ValueError, match="no class 'dinga': did you mean 'dingo'"): again.mark(label='dinga')
    assert len(read_labels(kept)) == 2


def test_images_without_files_are_named_by_their_place(nets, tmp_path):
    ex = ConfusionExplorer(nets[1], nets[0], labels=tmp_path/'marks.csv').mark()
    assert read_labels(tmp_path/'marks.csv') == [(f'image {ex.index}', ex.vocab[ex.wrong])]
    assert ConfusionExplorer(nets[1], nets[0], labels=True).labels is None


def test_names_are_no_mathematics(photos):
    "A class called by what TeX would set is drawn as it is written"
    base, learn = photos
    names = ['$x^2$', 'a_b', 'ж_', r'\frac']
    old = learn.dls.vocab
    ex = ConfusionExplorer(learn, base, by='either')
    ex.vocab = names
    texts = ' '.join(t.get_text() for t in ex.figure().findobj(Text))
    assert names[ex.true] in texts and not any(t.get_parse_math() for t in ex.figure().findobj(Text) if t.get_text())
    assert old is learn.dls.vocab and pixels(ex.png()).std() > 0


def test_without_anywidget():
    "Everything but the panel works, and the panel says what to install"
    code = '''
import sys; sys.modules['anywidget'] = None
from fastai.vision.all import *
from focusnet_fastai.all import *
base,learn = digit_learners(n_train=60, n_epoch=1)
print(len(ConfusionExplorer(learn, base).png()) > 1000)
try: explore(learn, base)
except ImportError as e: print(e)
'''
    out = fresh.python(code)
    assert out.returncode == 0, out.stderr[-2000:]
    assert out.stdout.split('\n')[:2] == ['True', "The explorer needs anywidget: pip install 'anywidget>=0.9'"]
