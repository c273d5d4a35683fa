"The report in a real browser, on a wide and on a narrow screen, with mouse and keyboard. `make test-browser` runs it."
import os
from types import SimpleNamespace
import pandas as pd, pytest
from fastai.vision.all import Learner, set_seed
from focusnet_fastai.app.photo_network import digit_photos, photo_learner
from focusnet_fastai.app.confusions import shown_pairs
from focusnet_fastai.app.report import report_html
from focusnet_fastai.compare import Comparison
from focusnet_fastai.data.folder import folder_dls
from focusnet_fastai.data.labels import read_labels
from focusnet_fastai.see.examples import digit_learners

pytestmark = pytest.mark.slow

def shot(page, name, **kwargs):
    folder = os.environ.get('FOCUSNET_SCREENSHOTS')
    if folder: page.screenshot(path=f'{folder}/{name}.png', **kwargs)


@pytest.fixture(scope='module')
def file(tmp_path_factory):
    "A report on digits"
    base, learn = digit_learners(n_train=100, n_epoch=5)
    path = tmp_path_factory.mktemp('report')/'report.html'
    path.write_text(report_html(learn, base, settings={'Seed': 7}), encoding='utf-8')
    return path, learn.compare(base)


def diagnosis(learn):
    "What stands in for a diagnosis: two verdicts, and training images with a suggested label"
    why = "Both networks tell them apart on the training images, and confuse them on others: train with FocusNet or with more augmentation."
    df = pd.DataFrame([dict(true=a, predicted=b, count=3, verdict=v, why=why) for a, b, v in (('3', '8', 'train'), ('9', '7', 'not clear'))])
    rows = [dict(index=i, file=str(f), label=f.parent.name, suggested='9', score=.9) for i, f in enumerate(learn.dls.train_ds.items[:6])]
    return SimpleNamespace(df=df, suspicious=pd.DataFrame(rows))


@pytest.fixture(scope='module')
def photos(tmp_path_factory):
    "A folder of digits as photographs, one class with a comma in its name, and a report on two networks that have hardly learned"
    folder = tmp_path_factory.mktemp('photos')/'digits'
    digit_photos(folder, range(10), n=14)
    (folder/'1').rename(folder/'1, "one"')
    dls = folder_dls(folder, size=64, num_workers=0, valid_pct=.4)
    set_seed(0)
    base, learn = [photo_learner(dls, pretrained=False) for _ in range(2)]
    for o in (base, learn):
        with o.no_bar(), o.no_logging(): o.fit(1, 1e-3)
    path = folder.parent/'report.html'
    path.write_text(report_html(learn, base, diagnosis=diagnosis(learn)), encoding='utf-8')
    return path, folder, learn, Comparison(*learn.paired_logits(base), vocab=dls.vocab, names=('Baseline', 'FocusNet'))


# Words of headings, cells and paragraphs that stand in two lines
broken_words = """() => {
  const bad = [], walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) for (const m of walk.currentNode.data.matchAll(/[A-Za-z]+/g)) {
    const r = document.createRange();
    r.setStart(walk.currentNode, m.index); r.setEnd(walk.currentNode, m.index + m[0].length);
    if (new Set(Array.from(r.getClientRects(), o => Math.round(o.top))).size > 1) bad.push(m[0]);
  }
  return bad; }"""


def test_report(file, page):
    "Nothing is fetched, every picture is drawn, the numbers can be read, and nothing is wider than the screen"
    path, c = file
    asked = []
    page.on('request', lambda r: asked.append(r.url))
    page.goto(path.as_uri())
    assert page.title() and page.locator('h1').is_visible()
    assert [o for o in asked if not o.startswith('data:')] == [path.as_uri()] and not page.errors
    text = page.inner_text('body')
    for name in c.names: assert f'{c.df.accuracy[name]:.2%}' in text
    assert f'Fixed: {len(c.fixed)} image' in text and 'Seed' in text
    n = page.locator('img').count()
    assert n > 1 and all(page.evaluate("Array.from(document.images, o => o.complete && o.naturalWidth > 20 && o.getBoundingClientRect().width > 20 && o.alt.length > 3)"))
    for width in (1280, 390):
        page.set_viewport_size({'width': width, 'height': 900})
        assert page.evaluate('document.documentElement.scrollWidth') <= width, width
        assert page.evaluate(broken_words) == [], width
        shot(page, f'report-{width}', full_page=True)
    figure = page.locator('img.wide').first
    page.wait_for_function("document.querySelector('img.wide').complete")
    assert figure.bounding_box()['width'] <= 390 and 600 < figure.evaluate('o => o.naturalWidth') < 800  # drawn for a phone


def test_a_number_opens_its_photographs(photos, page):
    "With the mouse: the images of the pair, their answers and maps; Close closes, and nothing moves sideways on a phone"
    path, folder, learn, c = photos
    page.goto(path.as_uri())
    pair = shown_pairs(c)[1][0]
    for width in (1280, 390):
        page.set_viewport_size({'width': width, 'height': 900})
        number = page.locator(f'.matrix button[popovertarget="pair-{pair[0]}-{pair[1]}"]').first
        number.click()
        opened = page.locator(f'#pair-{pair[0]}-{pair[1]}')
        assert opened.is_visible() and f'{c.vocab[pair[0]]} taken for {c.vocab[pair[1]]}' in opened.inner_text()
        cards = opened.locator('.photo')
        assert cards.count() == min(6, ((c.y == pair[0]) & ((c.pred == pair[1]) | (c.base_pred == pair[1]))).sum())
        assert cards.first.locator('.maps .shot').count() == 6
        boxes = [o.bounding_box() for o in cards.first.locator('.shot').all()]
        assert all(b['width'] > 60 and b['height'] > 60 and b['x'] >= 0 and b['x']+b['width'] <= width for b in boxes)
        assert page.evaluate('document.documentElement.scrollWidth') <= width and opened.evaluate('o => o.scrollWidth <= o.clientWidth')
        shot(page, f'photos-{width}')
        opened.get_by_role('button', name='Close').click()
        assert not opened.is_visible()
    assert not page.errors


def test_with_the_keyboard(photos, page):
    "Arrows go from number to number, Enter opens, Escape closes and comes back, Tab leaves the matrix; focus is seen"
    path, folder, learn, c = photos
    page.goto(path.as_uri())
    table = page.locator('.matrix').first
    assert table.locator('button[tabindex="0"]').count() == 1 < table.locator('button').count()
    where = "(o => [o.closest('tr').rowIndex, o.closest('td').cellIndex])(document.activeElement)"
    table.locator('button').first.focus()
    start = page.evaluate(where)
    page.keyboard.press('ArrowDown')
    down = page.evaluate(where)
    assert down[0] > start[0]
    page.keyboard.press('ArrowUp')
    assert page.evaluate(where)[0] < down[0]
    assert page.evaluate("parseFloat(getComputedStyle(document.activeElement).outlineWidth)") >= 2
    page.keyboard.press('Enter')
    assert page.locator('[popover]:popover-open').count() == 1 and page.evaluate("document.activeElement.textContent") == 'Close'
    shot(page, 'keyboard')
    page.keyboard.press('Escape')
    assert page.locator('[popover]:popover-open').count() == 0 and page.evaluate("!!document.activeElement.closest('.matrix')")
    page.keyboard.press('Tab')
    assert not page.evaluate("document.querySelector('.matrix').contains(document.activeElement)") and not page.errors


def test_labels_are_saved(photos, page, tmp_path):
    "Check boxes in two places write one table, and folder_dls takes it"
    path, folder, learn, c = photos
    page.goto(path.as_uri())
    assert not page.locator('#save').is_visible()
    first, second = page.locator('.cards .choice').nth(0), page.locator('.cards .choice').nth(1)
    first.get_by_role('checkbox').check()
    second.get_by_role('combobox').focus()
    second.get_by_role('combobox').select_option('1, "one"')
    assert second.get_by_role('checkbox').is_checked() and page.locator('#save output').inner_text() == '2 labels marked'
    pair = shown_pairs(c)[1][0]
    page.locator(f'.matrix button[popovertarget="pair-{pair[0]}-{pair[1]}"]').first.click()
    choice = page.locator(f'#pair-{pair[0]}-{pair[1]} .choice').first
    choice.get_by_role('combobox').select_option('drop')
    page.keyboard.press('Escape')
    page.keyboard.press('Escape')
    shot(page, 'marked', full_page=True)
    with page.expect_download() as download: page.get_by_role('button', name='Save labels.csv').click()
    table = tmp_path/download.value.suggested_filename
    download.value.save_as(table)
    names = [o.get_attribute('data-file') for o in (first, second, choice)]
    want = {names[0]: '9', names[1]: '1, "one"', names[2]: 'drop'}
    assert table.name == 'labels.csv' and dict(read_labels(table)) == want
    dls = folder_dls(folder, size=64, num_workers=0, valid_pct=.4, labels=table)
    moved = {f'{f.parent.name}/{f.name}': dls.vocab[int(y)] for f, (_, y) in zip(dls.train_ds.items, dls.train_ds)}
    assert all(moved[o] == want[o] for o in names[:2]) and len(dls.left_out) == 1 and not page.errors


def test_report_in_the_dark(photos, page):
    "Text can be told from its ground in both colour schemes, in the page and in what opens"
    def luminance(rgb):
        v = [float(o)/255 for o in rgb[rgb.index('(')+1:-1].split(',')[:3]]
        v = [o/12.92 if o <= .03928 else ((o+.055)/1.055)**2.4 for o in v]
        return .2126*v[0] + .7152*v[1] + .0722*v[2]
    grounds = set()
    for scheme in ('light', 'dark'):
        page.emulate_media(color_scheme=scheme)
        page.goto(photos[0].as_uri())
        page.locator('.matrix button').first.click()
        for where in ('body', '.wrong', '.file', '[popover]:popover-open', '[popover]:popover-open .wrong'):
            a, b = page.evaluate("""w => { let o = document.querySelector(w); const a = getComputedStyle(o).color;
              while (o && getComputedStyle(o).backgroundColor == 'rgba(0, 0, 0, 0)') o = o.parentElement;
              return [a, o ? getComputedStyle(o).backgroundColor : 'rgb(255, 255, 255)'] }""", where)
            hi, lo = sorted([luminance(a), luminance(b)], reverse=True)
            assert (hi+.05)/(lo+.05) > 4.5, (scheme, where, a, b)
            grounds.add((scheme, b))
        shot(page, f'report-{scheme}')
        page.keyboard.press('Escape')
        shot(page, f'report-{scheme}-whole', full_page=True)
    assert len({b for _, b in grounds}) >= 2
