"The report of `focusnet-train` in a real browser, on a wide and on a narrow screen. `make test-browser` runs it."
import os

import pytest

from focusnet_fastai.see.examples import digit_learners
from focusnet_fastai.app.report import report_html


@pytest.fixture(scope='module')
def file(tmp_path_factory):
    "A report on digits"
    base, learn = digit_learners(n_train=100, n_epoch=5)
    path = tmp_path_factory.mktemp('report')/'report.html'
    path.write_text(report_html(learn, base, settings={'Seed': 7}), encoding='utf-8')
    return path, learn.compare(base)


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
        assert page.locator('img.wide').first.bounding_box()['width'] > 650  # the text of a figure keeps its size: it is moved sideways
        if os.environ.get('FOCUSNET_SCREENSHOTS'): page.screenshot(path=f"{os.environ['FOCUSNET_SCREENSHOTS']}/report-{width}.png", full_page=True)


def test_report_in_the_dark(file, page):
    "Text can be told from its ground in both colour schemes"
    def luminance(rgb):
        v = [float(o)/255 for o in rgb[rgb.index('(')+1:-1].split(',')[:3]]
        v = [o/12.92 if o <= .03928 else ((o+.055)/1.055)**2.4 for o in v]
        return .2126*v[0] + .7152*v[1] + .0722*v[2]
    for scheme in ('light', 'dark'):
        page.emulate_media(color_scheme=scheme)
        page.goto(file[0].as_uri())
        a, b = page.evaluate("[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]")
        b = 'rgb(255, 255, 255)' if b in ('transparent', 'rgba(0, 0, 0, 0)') else b
        hi, lo = sorted([luminance(a), luminance(b)], reverse=True)
        assert (hi+.05)/(lo+.05) > 4.5, (scheme, a, b)
