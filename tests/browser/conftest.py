"A page in a real browser, for all tests of this folder. With FOCUSNET_SCREENSHOTS=FOLDER they leave pictures there."
import shutil

import pytest

chromium = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)
flags = ('--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking '
         '--disable-component-update --disable-sync').split()


@pytest.fixture
def page(tmp_path):
    "A page in a fresh browser, and the errors of its console"
    if chromium is None: pytest.skip("There is no Chromium: install it, or run `make test-browser` as root on a machine with apt")
    sync_api = pytest.importorskip('playwright.sync_api', reason="playwright is not installed: pip install -e '.[dev]'")
    with sync_api.sync_playwright() as p:
        browser = p.chromium.launch_persistent_context(str(tmp_path/'profile'), executable_path=chromium, headless=True, args=flags,
                                                       viewport={'width': 1280, 'height': 1100})
        browser.set_default_timeout(90_000)
        page = browser.pages[0]
        page.errors = []
        page.on('console', lambda m: page.errors.append(f'{m.text} ({m.location.get("url")})') if m.type == 'error' else None)
        page.on('pageerror', lambda e: page.errors.append(str(e)))
        yield page
        browser.close()
