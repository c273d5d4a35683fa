"The documentation site in a real browser, as `make docs` has built it: nothing is fetched from elsewhere, nothing is wider than a phone, search finds"
import os
from pathlib import Path
from threading import Thread
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
import pytest

site = Path(__file__).resolve().parents[2]/'docs/_build'
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not (site/'index.html').exists(), reason="The site is not built: run `make docs`")]
pages = ['index', 'methods/index', 'methods/regularise', 'library/loss', 'library/focusnet', 'tutorials/compare_methods', 'results', 'names', 'project/changelog']


class Silent(SimpleHTTPRequestHandler):
    def log_message(self, *args): pass


@pytest.fixture(scope='module')
def address():
    "Of the site, on this machine"
    server = ThreadingHTTPServer(('127.0.0.1', 0), partial(Silent, directory=str(site)))
    Thread(target=server.serve_forever, daemon=True).start()
    yield f'http://127.0.0.1:{server.server_port}'
    server.shutdown()


def keep(page, name):
    if os.environ.get('FOCUSNET_SCREENSHOTS'): page.screenshot(path=f"{os.environ['FOCUSNET_SCREENSHOTS']}/site-{name.replace('/', '-')}.png")


def test_pages(page, address):
    "Wide, narrow and dark"
    asked = []
    page.on('request', lambda r: asked.append(r.url))
    for name in pages:
        for width, scheme in ((1280, 'light'), (390, 'light'), (1280, 'dark')):
            page.set_viewport_size({'width': width, 'height': 900})
            page.emulate_media(color_scheme=scheme)
            page.goto(f'{address}/{name}.html')
            assert page.locator('h1').first.is_visible(), name
            assert page.evaluate('document.documentElement.scrollWidth') <= width, (name, width)
            assert page.evaluate('Array.from(document.images, o => o.loading == "lazy" || (o.complete && o.naturalWidth > 5)).every(o => o)'), name
            keep(page, f'{name}-{width}-{scheme}')
    assert {o for o in asked if not o.startswith((address, 'data:'))} == set() and not page.errors


def test_formulas_are_drawn(page, address):
    "By the browser itself, from MathML"
    page.goto(f'{address}/methods/regularise.html')
    boxes = [o.bounding_box() for o in page.locator('math').all()[:5]]
    assert len(boxes) == 5 and all(o['width'] > 5 and o['height'] > 5 for o in boxes)


def test_source_is_folded_and_opens(page, address):
    page.goto(f'{address}/library/loss.html')
    source = page.locator('details.hide').nth(1)
    assert source.locator('pre').first.is_hidden()
    source.locator('summary').click()
    assert source.locator('pre').first.is_visible()


def test_search(page, address):
    "A name leads to its entry"
    page.goto(f'{address}/search.html?q=refocus')
    hit = page.locator('ul.search li a').first
    hit.wait_for(timeout=20000)
    assert page.locator('ul.search li a').count() > 1
    assert page.locator('ul.search a[href*="focusnet.html"]').count() > 0
