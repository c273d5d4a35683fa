"One image and both networks: the classes, labels and maps of a look, and the artists that show them"
import numpy as np, pytest, torch
from torch import nn, tensor
from fastai.vision.all import Learner
from focusnet_fastai.loss import multi_warm_label
from focusnet_fastai.see.cam import class_maps
from focusnet_fastai.see.maps import contrast_maps
from focusnet_fastai.see.contrast import contrast_overlay
from focusnet_fastai.see.look import draw_look, paired_look, restrength
from helpers.figures import digit_pair, logits


@pytest.fixture(scope='module')
def nets(): return digit_pair()


@pytest.fixture(scope='module')
def place(nets):
    "An image that the baseline gets wrong: index, class, answer"
    base, learn = nets
    zb, y = (torch.cat(o) for o in zip(*[(logits(base.model, x), y) for x, y in learn.dls.valid]))
    i = int((zb.argmax(1) != y).nonzero()[0])
    return i, int(y[i]), int(zb[i].argmax())


@pytest.fixture
def look(nets, place): return paired_look(nets[1], nets[0], *place)


def test_a_contrast_map_sums_to_a_difference_of_logits(nets, look):
    "Its mean is the logit of the label minus the mean logit of the other warm classes, without the biases"
    base, learn = nets
    for i, net in enumerate((base.model, learn.model)):
        z = look.zs[i]-net[-1].bias.detach()
        want = z[look.true]-z[look.others].mean()
        assert look.others == look.warm and abs(float(look.contrasts[i].mean()*look.limits[i])-float(want)) < .02*look.limits[i]


def test_colour_and_direction():
    "Red for, blue against, and nothing but the picture where a contrast map is zero"
    im = contrast_overlay(np.full((1, 3, 3), .5), [[-1., 0, 1]])
    assert im[0, 2].argmax() == 0 and im[0, 0].argmax() == 2 and np.ptp(im[0, 1]) < 1e-9


def test_restrength_is_drawing_anew(nets, look):
    vocab = [str(i) for i in range(10)]
    fig, want = restrength(draw_look(look, vocab), look, .3), draw_look(look, vocab, alpha=.3)
    for (a, _), (b, _) in zip(fig.maps, want.maps):
        for x, y in zip(a, b): np.testing.assert_array_equal(x.get_array(), y.get_array())


def test_titles_of_a_contrast(nets, look):
    "One class is named, several are counted where their names are long"
    vocab = [f'breed {i}' for i in range(10)]
    def texts(o): return [t.get_text() for t in draw_look(o, vocab).texts]
    assert texts(look._replace(others=[3])).count("and not:\nbreed 3") == 2
    assert texts(look._replace(others=[3, 5])).count("and not:\n2 warm classes") == 2


def test_the_label_stands_once(look):
    fig = draw_look(look, [str(i) for i in range(10)])
    assert [t.get_text() for t in fig.texts].count('multi-warm label') == 1
    label = [a for a in fig.axes if a.patches and a.get_xlim() == (0, 1.5)]
    assert len(label) == 1
    np.testing.assert_allclose([p.get_width() for p in label[0].patches], look.label[look.classes], atol=1e-6)


def test_against_and_scale(nets, place, look):
    "Against the wrong class alone; both networks on one scale"
    o = paired_look(nets[1], nets[0], *place, against='wrong', scale='pair')
    assert o.others == [o.wrong] and o.limits[0] == o.limits[1] and o.tops[0] == o.tops[1]
    assert min(look.tops) < o.tops[0] and abs(max(look.tops)-o.tops[0]) < 1e-5
    with pytest.raises(ValueError, match="'warm' or 'wrong'"): paired_look(nets[1], nets[0], *place, against='all')


def test_only_the_label_is_warm(nets, place):
    "Then the baseline's strongest other class is what the label is set against"
    base, learn = nets
    i, true, _ = place
    with torch.no_grad(): base.model[-1].bias -= 50
    try: o = paired_look(learn, base, i, true, true)
    finally:
        with torch.no_grad(): base.model[-1].bias += 50
    assert not o.warm and o.others == [int(o.zs[0].index_fill(0, tensor(true), -torch.inf).argmax())]


def test_zoom_changes_maps_but_no_answers(nets, place, look):
    o = paired_look(nets[1], nets[0], *place, zoom=2)
    assert all(torch.equal(a, b) for a, b in zip(o.zs, look.zs)) and '64x64' in o.method
    assert all(m.shape[-2:]==o.image.shape[:2] for m in o.cams) and o.image.shape[0]==2*look.image.shape[0]


def test_widths(look):
    vocab = [f'breed {i}' for i in range(10)]
    fig = draw_look(look, vocab, width='page', note=False)
    assert fig.get_size_inches()[0] == 7.2 and not any('Class maps' in t.get_text() for t in fig.texts)
    with pytest.raises(ValueError, match='fit a column'): draw_look(look, vocab, width='column')
