"Figures as files: `make_figure` of digits, of learners, and of learners from files"
import xml.etree.ElementTree as ET
import numpy as np, pandas as pd, pytest
from PIL import Image
from fastai.vision.all import load_learner
from focusnet_fastai.app.cli import focusnet_figure
from focusnet_fastai.app.paper_figures import make_figure
from focusnet_fastai.see.picking import fixed_images
from helpers.figures import digit_pair, picture_size, png

pytestmark = pytest.mark.slow  # as a whole; `make quick` leaves it out


@pytest.fixture(scope='module')
def pair(): return digit_pair()


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


def test_printed_at_a_width(pair, tmp_path):
    "The file is exactly as wide, holds text as text in the fonts asked for, and no note if none is wanted"
    base, learn = pair
    f = make_figure(1, tmp_path/'f.png', base, learn, n=1, width='column', dpi=200)
    assert picture_size(f)[0]==700
    svg = make_figure(2, tmp_path/'f.svg', base, n=1, width='page', font='DejaVu Serif', font_size=9, note=False).read_text()
    assert 'DejaVu Serif' in svg and 'class map</text>' in svg and 'Class maps by' not in svg
    pdf = make_figure(2, tmp_path/'f.pdf', base, n=1).read_bytes()
    assert b'/Type3' not in pdf and b'/Type0' in pdf
    for kw, word in ((dict(font='No Such Font'), 'no font'), (dict(font_size=100), 'size of text'), (dict(width='wide'), 'width')):
        with pytest.raises(ValueError, match=word): make_figure(2, tmp_path/'g.png', base, n=1, **kw)
    assert not (tmp_path/'g.png').exists()


def test_figure_1_is_whole(pair, tmp_path):
    base, learn = pair
    svg = make_figure(1, tmp_path/'f.svg', base, learn, n=1).read_text()
    for o in ('(a)', '(b) Baseline', '(c) FocusNet', 'focus-picking loss'): assert o in svg
    assert 'Scene B' in make_figure(1, tmp_path/'g.svg', base, learn, scene='B').read_text()


def test_a_table_that_is_none(tmp_path):
    "The file is named"
    for name, text in (('empty.csv', b''), ('bytes.csv', b'\xff\xfe\x00\x81')):
        (tmp_path/name).write_bytes(text)
        with pytest.raises(ValueError, match=name): make_figure(4, tmp_path/'f.png', items=tmp_path/name)


def test_damaged_image_is_named(pair, tmp_path):
    base, learn = pair
    for i in range(4): png(tmp_path/'images'/str(int(base.dls.valid_ds[i][1])), i, base.dls)
    bad = next((tmp_path/'images').rglob('*.png'))
    bad.write_bytes(bad.read_bytes()[:60])
    for number in (1, 2, 3):
        with pytest.raises((ValueError, OSError), match=bad.name): make_figure(number, tmp_path/'f.png', base, learn, tmp_path/'images', n=4)


@pytest.mark.parametrize('args,words', [(dict(number=1, base='b.pkl'), 'add --learn'), (dict(number=3, learn='l.pkl'), 'add --base'), (dict(number=2, base='b.pkl'), 'add --images FOLDER'),
                                        (dict(number=4, base='b.pkl'), '--images TABLE.csv'), (dict(number=2, scene='A'), '--scene belongs to Figure 1'), (dict(number=3, zoom=2.), '--zoom'),
                                        (dict(number=2, images='no-such-folder'), 'no-such-folder'), (dict(number=2, width='wide', images=None), '--width'), (dict(number=1, scale='all'), '--scale')])
def test_the_command_speaks_of_options(args, words, tmp_path, monkeypatch, capsys):
    "What is missing is named by the option that gives it"
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as e: focusnet_figure(**args)
    assert words in str(e.value) and 'items' not in str(e.value) and not list(tmp_path.iterdir())


def test_the_command_prints_for_a_column(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    focusnet_figure(3, out='f.png', width='column', dpi=100)
    assert picture_size(tmp_path/'f.png')[0]==350
