"What figures are drawn from: fonts, names that are text, pages at a width, maps that let the photograph through"
import io, re, warnings
import matplotlib as mpl, numpy as np, pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib.font_manager import fontManager
from matplotlib.text import Text
from PIL import Image
from helpers.figures import picture_size
from focusnet_fastai.see import text as fitted
from focusnet_fastai.see.page import colours
from focusnet_fastai.see.parts import class_bars, heat_colours, overlay, rest_note
from focusnet_fastai.see.page import figure_style, grid_cells, note_height, NotebookFigure, Page, page_width
from focusnet_fastai.see.text import fitted_name, font_families, plain_text, text_width, wrapped_text


def words(fig): return [t for t in fig.findobj(Text) if t.get_text().strip()]


# ---- maps

def test_the_photograph_stays_where_there_is_no_evidence():
    g = np.random.default_rng(0)
    photo, heat = g.random((6, 6, 3)), np.linspace(0, 1, 36).reshape(6, 6)
    for alpha in (.3, .85, 1.):
        got = overlay(photo, heat, alpha)
        np.testing.assert_array_equal(got[0, 0], photo[0, 0])                         # in colour
        away = np.abs(overlay(np.zeros_like(photo), heat, alpha)-overlay(np.ones_like(photo), heat, alpha)).mean(-1)
        np.testing.assert_allclose(away, 1-alpha*heat, atol=1e-12)                    # opacity grows evenly with the evidence
    np.testing.assert_array_equal(overlay(photo, heat, 0), photo)
    for bad in (-.1, 1.1):
        with pytest.raises(ValueError, match='alpha'): overlay(photo, heat, bad)


def test_colours_are_perceptually_uniform():
    "Lightness (CIE L*) grows with the evidence, in steps of about one size: also readable in black and white"
    rgb = heat_colours(np.linspace(0, 1, 21))[:, :3]
    linear = np.where(rgb<=.04045, rgb/12.92, ((rgb+.055)/1.055)**2.4)
    y = linear @ [.2126, .7152, .0722]
    steps = np.diff(116*np.cbrt(y)-16)
    assert (steps>0).all() and steps.max()<2.5*np.median(steps)


# ---- fonts and names

@pytest.fixture(scope='module')
def made_up_font(tmp_path_factory):
    "An installed font with one character that no other has here"
    path, pen = tmp_path_factory.mktemp('fonts')/'made_up.ttf', TTGlyphPen(None)
    for k, p in enumerate(((0, 0), (0, 700), (700, 700), (700, 0))): pen.moveTo(p) if not k else pen.lineTo(p)
    pen.closePath()
    f = FontBuilder(1000)
    f.setupGlyphOrder(['.notdef', 'square'])
    f.setupCharacterMap({0x1F9A7: 'square'})                                         # an orang-utan
    f.setupGlyf({'.notdef': TTGlyphPen(None).glyph(), 'square': pen.glyph()})
    f.setupHorizontalMetrics({'.notdef': (500, 0), 'square': (800, 0)})
    f.setupHorizontalHeader(ascent=800, descent=-200)
    f.setupNameTable(dict(familyName='Made up', styleName='Regular'))
    f.setupOS2()
    f.setupPost()
    f.save(path)
    before = list(fontManager.ttflist)
    fontManager.addfont(path)
    for o in (fitted._missing, fitted._fallback): o.cache_clear()
    yield 'Made up'
    fontManager.ttflist[:] = before
    for o in (fitted._missing, fitted._fallback): o.cache_clear()


def test_installed_fonts_help_out(made_up_font):
    "The user's families first, then one that has the character; drawn without a complaint"
    with mpl.rc_context({'font.family': ['DejaVu Serif']}), warnings.catch_warnings():
        warnings.simplefilter('error')
        assert font_families('dingo')==['DejaVu Serif']
        assert font_families('dingo \U0001F9A7')==['DejaVu Serif', made_up_font]
        with figure_style():
            page = Page(2, 1)
            t = page.text(.1, .5, '\U0001F9A7 dingo')
            ax = page.axes(.5, .1, 1, .5)
            ax.set_xlabel('\U0001F9A7')                                               # not by a part: found when the figure is drawn
            ax.plot([0], label='\U0001F9A7')
            legend = ax.legend()
            page.fig.savefig(io.BytesIO(), format='png')
        for o in (t, ax.xaxis.label, *legend.get_texts()): assert list(o.get_fontfamily())==['DejaVu Serif', made_up_font]
        assert text_width('\U0001F9A7', 10)==pytest.approx(.8*10/72, abs=.02)         # measured in that font


def test_characters_that_nobody_has():
    "One sentence that names them, and the way out"
    fitted._fallback.cache_clear()
    with pytest.warns(UserWarning, match='No installed font has the characters.*font.family'): font_families('\U000F1234')


def test_users_fonts_and_sizes():
    with mpl.rc_context({'font.family': 'DejaVu Serif', 'font.size': 14, 'axes.labelsize': 'small'}), figure_style():
        page = Page(3, 1)
        assert page.text(.1, .1, 'x', size=10).get_fontname()=='DejaVu Serif' and page.text(.1, .1, 'x', size=10).get_fontsize()==14
        assert page.pt(7.5)==pytest.approx(10.5) and mpl.rcParams['axes.labelsize']=='small'
        assert text_width('Dingo', 10)>1.3*text_width('Dingo', 7.2)
    with mpl.style.context('dark_background'), figure_style(): assert mpl.rcParams['figure.facecolor']=='white' and mpl.rcParams['text.color']==colours.ink


@pytest.mark.slow
@pytest.mark.parametrize('name', ['Ba$$in', '$x', 'a_b^c', r'\frac{', '$\\alpha$', '100%', 'a & b', '$$', '{', '#1'])
def test_names_are_never_mathematics(name):
    "Drawn letter by letter, as text, label, title, legend and name of a tick; also with TeX switched on"
    with mpl.rc_context({'text.usetex': True}), figure_style():
        page = Page(3, 2)
        page.text(.1, .1, name)
        ax = page.axes(.5, .5, 2, 1)
        ax.bar([0, 1], [1, 2], label=name)
        ax.set(title=name, xlabel=name, ylabel=name)
        ax.set_xticks([0, 1], [name, 'other'])
        ax.legend(title=name)
    page.fig.savefig(io.BytesIO(), format='pdf')
    svg = io.BytesIO()
    page.fig.savefig(svg, format='svg')
    shown = [t for t in words(page.fig) if t.get_text()==name and t.get_visible()]
    assert len(shown)==7 and not any(t.get_parse_math() or t.get_usetex() for t in shown)
    text = re.findall(r'<text[^>]*>([^<]*)</text>', svg.getvalue().decode())
    assert text.count(name.replace('&', '&amp;'))==7


def test_widths_of_names_with_dollars():
    assert text_width('Ba$$in', 10)==pytest.approx(text_width('Ba', 10)+text_width('$$', 10)+text_width('in', 10), rel=.15)


# ---- lines

@pytest.mark.filterwarnings("ignore:No installed font", "ignore:Glyph") # the width of boxes will do
def test_wrapped_text_fits():
    s = 'Rhodesian ridgeback and Donaudampfschifffahrtsgesellschaft 한국어이름이긴것'
    for width in (.4, .9, 3.):
        lines = wrapped_text(s, width)
        assert all(text_width(o, 8, 'normal')<=width for o in lines)
        assert ''.join(lines).replace(' ', '')==s.replace(' ', '')
    assert wrapped_text('', 1)==[''] and wrapped_text('one  two', 5)==['one two']


def test_fitted_names():
    assert fitted_name('Old_English_sheepdog', 5)=='Old English sheepdog'
    cut = fitted_name('a very long name that does not end here and goes on and on', .6, lines=3)
    assert len(cut.split('\n'))==3 and cut.endswith('…')
    p = np.array([.5, .3, .2])
    assert rest_note(p, [0, 1])=='1 more class: 0.20' and rest_note(np.array([.6, .4, -1e-9]), [0, 1])=='1 more class: 0.00'


@pytest.mark.parametrize('n', [1, 2, 10, 11, 13, 120, 1000])
@pytest.mark.parametrize('width', [None, 3.5, 7.2])
def test_cells_in_rows(n, width):
    "All fit side by side, none smaller than allowed, rows as even as can be"
    columns, cell = grid_cells(n, width)
    assert 1<=columns<=n and (width is None or columns*cell<=width+1e-9) and (width is None or cell>=.55-1e-9)
    rows = -(-n//columns)
    assert rows*columns-n<rows or rows==1


# ---- pages and files

@pytest.mark.parametrize('width,inches', [(3.5, 3.5), ('column', 3.5), ('page', 7.2), ('slide', 13.3), (None, None)])
def test_widths_for_print(width, inches): assert page_width(width)==inches


@pytest.mark.parametrize('width', ['poster', 0, -1, 1.9])
def test_widths_that_are_none(width):
    with pytest.raises(ValueError, match="'column', 'page', 'slide'"): page_width(width)


def test_text_keeps_its_points():
    "On pages of any width; only a `figsize` or given axes scale the whole"
    for w in (3.5, 7.2, 13.3): assert Page(w, 2).text(.1, .1, 'x', size=8).get_fontsize()==8
    assert Page(4, 2, figsize=(8, 4)).text(.1, .1, 'x', size=8).get_fontsize()==16


def test_notes_are_whole():
    s = 'Class maps by Grad-CAM at layer blocks.11.norm1, on one colour scale for each network and image, of the true class and of its rival.'
    for w in (2, 3.5, 7.2):
        page = Page(w, .1+note_height(s, w))
        page.note(s)
        page.fig.draw_without_rendering()
        box = page.fig.texts[0].get_window_extent()
        assert box.x0>=0 and box.x1<=page.fig.bbox.x1 and box.y0>=0 and box.y1<=page.fig.bbox.y1
        assert page.fig.texts[0].get_text().replace('\n', ' ')==s
    assert note_height('', 3)==0
    page = Page(2, 1)
    page.note('')
    assert not page.fig.texts


@pytest.mark.slow
def test_saved_files(tmp_path):
    "TrueType in PDF and PS, text in SVG, nothing cut off, and the width that was asked for"
    fig = NotebookFigure(figsize=(2, 1))
    fig.text(.1, .5, 'inside')
    fig.savefig(tmp_path/'a.png', dpi=100)
    assert picture_size(tmp_path/'a.png')==(200, 100)
    fig.savefig(tmp_path/'a.pdf')
    assert b'/FontType 42' in (tmp_path/'a.pdf').read_bytes() or b'/CIDFontType2' in (tmp_path/'a.pdf').read_bytes()
    assert b'/Type3' not in (tmp_path/'a.pdf').read_bytes()
    fig.savefig(tmp_path/'a.ps')
    assert b'FontType 42' in (tmp_path/'a.ps').read_bytes() or b'Type 42' in (tmp_path/'a.ps').read_bytes()
    fig.savefig(tmp_path/'a.svg')
    assert '>inside</text>' in (tmp_path/'a.svg').read_text()
    fig.text(.6, .2, 'a long word that stands over the edge')
    fig.savefig(tmp_path/'b.png', dpi=100)
    im = np.asarray(Image.open(tmp_path/'b.png').convert('L'))
    assert im.shape[1]>250 and (im[:, -3:]==255).all()
    fig.savefig(tmp_path/'c.png', dpi=100, bbox_inches='tight')                        # what the user says counts
    assert picture_size(tmp_path/'c.png')[0]<im.shape[1]+30


def test_small_marked_bars_stay_visible():
    "A multi-warm label of 1/100 has an outline and its number"
    page = Page(4, 1)
    ax = page.axes(.1, .1, 3.8, .8)
    class_bars(ax, [.01, 0, .01], [True, False, True], '.2f', (0, .0135), page)
    assert [t.get_text() for t in ax.texts]==['0.01', '0.01'] and ax.patches[0].get_height()/ax.get_ylim()[1]>.5
    plain_text(page.fig)
