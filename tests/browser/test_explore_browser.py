"""The explorer in a real JupyterLab and a real browser, as a user meets it. `make test-browser` runs it, and installs Chromium where it can.

With FOCUSNET_SCREENSHOTS=FOLDER the test leaves pictures of the page there."""
import json, os, shutil, socket, subprocess, sys, time
from pathlib import Path
import nbformat, pytest
from nbformat.v4 import new_code_cell, new_notebook

root = Path(__file__).resolve().parents[2]
cells = dict(imports='from fastai.vision.all import *\nfrom focusnet_fastai.all import *',
             train='base,learn = digit_learners(n_train=120, n_epoch=4)',
             explore='ex = explore(learn, base)\nex',
             marked="print(ex.marked.to_json(orient='records'))")
# Complaints of JupyterLab's own page that have nothing to do with a notebook; every other error fails the test
noise = ()


@pytest.fixture(scope='module')
def lab(tmp_path_factory):
    "A JupyterLab server on an empty folder with one notebook and no settings of this machine; its address"
    tmp = tmp_path_factory.mktemp('lab')
    work, own = tmp/'work', {f'JUPYTER_{o}_DIR': str(tmp/o) for o in ('CONFIG', 'DATA', 'RUNTIME')}
    own |= {f'JUPYTERLAB_{o}_DIR': str(tmp/o) for o in ('SETTINGS', 'WORKSPACES')}
    quiet = tmp/'SETTINGS/@jupyterlab/apputils-extension/notification.jupyterlab-settings'
    for d in (work, quiet.parent): d.mkdir(parents=True)
    quiet.write_text('{"fetchNews": "false", "checkForUpdates": false}')
    nb = new_notebook(cells=[new_code_cell(s, id=i) for i, s in cells.items()])
    nb.metadata.kernelspec = {'display_name': 'python3', 'language': 'python', 'name': 'python3'}
    nbformat.write(nb, work/'explore.ipynb')
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    env = {**os.environ, **own, 'IPYTHONDIR': str(tmp/'ipython'), 'OMP_NUM_THREADS': '1', 'MPLBACKEND': 'agg',
           'PYTHONPATH': os.pathsep.join(filter(None, (str(root), os.environ.get('PYTHONPATH'))))}
    cmd = [sys.executable, '-m', 'jupyterlab', '--no-browser', '--allow-root', f'--ServerApp.root_dir={work}', '--ServerApp.ip=127.0.0.1',
           f'--ServerApp.port={port}', '--IdentityProvider.token=explore', '--LabApp.news_url=None']
    with open(tmp/'log', 'w') as log: server = subprocess.Popen(cmd, env=env, stdout=log, stderr=subprocess.STDOUT, cwd=work)
    try:
        yield address(tmp, server)
    finally:
        server.terminate()
        try: server.wait(20)
        except subprocess.TimeoutExpired: server.kill()


def address(tmp, server, seconds=60):
    "Wait for the server to say where it is"
    end = time.monotonic() + seconds
    while time.monotonic() < end and server.poll() is None:
        for f in (tmp/'RUNTIME').glob('jpserver-*.json'):
            try:
                info = json.loads(f.read_text())
                socket.create_connection(('127.0.0.1', info['port']), 1).close()
                return info['url']
            except (ValueError, OSError): pass
        time.sleep(.1)
    raise AssertionError(f"JupyterLab did not start:\n{(tmp/'log').read_text()[-3000:]}")


digest = '''async () => {
  const img = document.querySelector('img.widget-image');
  if (!img || !img.complete || !img.naturalWidth) return null;
  try {
    const bytes = await (await fetch(img.src)).arrayBuffer(), hash = await crypto.subtle.digest('SHA-256', bytes);
    return [...new Uint8Array(hash)].map(b => b.toString(16).padStart(2, '0')).join('');
  } catch { return null; }  // the address of the old picture has just been given up
}'''


def picture(page, old=None, seconds=90):
    "Wait until the picture's bytes are other than those whose digest is `old`; their digest"
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        new = page.evaluate(digest)
        if new not in (None, old): return new
        page.wait_for_timeout(50)
    shot(page, 'failed')
    raise AssertionError('The picture did not change' if old else f'There is no picture; errors: {page.errors}')


def shot(page, name):
    folder = os.environ.get('FOCUSNET_SCREENSHOTS')
    if folder: page.screenshot(path=f'{folder}/{name}.png')


def run_all(page, url):
    "Open the notebook and run it, when its kernel is ready"
    page.goto(f'{url}lab/tree/explore.ipynb?token=explore&reset')
    page.locator('#jp-main-statusbar', has_text='| Idle').wait_for()
    page.get_by_role('menuitem', name='Run', exact=True).click()
    page.get_by_role('menuitem', name='Run All Cells', exact=True).click()


def test_explorer(lab, page):
    "Run all, pick a pair, move the slider, turn the page, mark an image: each changes the picture, and nothing complains"
    start = time.monotonic()
    run_all(page, lab)
    seen = [picture(page)]
    page.locator('#jp-main-statusbar', has_text='| Idle').wait_for()
    page.locator('.jp-Cell').last.get_by_text('[]').wait_for()  # the last cell has run: no image is marked yet
    panel = page.locator('.jp-OutputArea-output:has(img.widget-image)')
    pairs, summary = panel.locator('.widget-select select'), panel.locator('.widget-html').first
    shot(page, '1-opened')

    assert pairs.locator('option').count() > 3
    pairs.locator('option').nth(2).click()
    seen.append(picture(page, seen[-1]))
    assert panel.get_by_label('Pair').input_value() == '3'
    shot(page, '2-pair')

    panel.locator('.noUi-handle').focus()
    page.keyboard.press('PageDown')
    seen.append(picture(page, seen[-1]))
    shot(page, '3-strength')

    before = summary.inner_text()
    panel.get_by_role('button', name='Next').click()
    seen.append(picture(page, seen[-1]))
    assert summary.inner_text() != before and panel.get_by_label('Image').input_value() == '2'
    shot(page, '4-next')

    panel.get_by_role('checkbox').check()
    seen.append(picture(page, seen[-1]))
    shot(page, '5-marked')

    page.locator('.jp-Cell').last.locator('.cm-content').click()
    page.keyboard.press('Control+Enter')
    row = page.locator('.jp-Cell').last.get_by_text('"true"').inner_text()
    (row,) = json.loads(row)
    assert f"Image {row['index']}, labelled {row['true']}:" in summary.inner_text() and f"Baseline says {row['baseline']} " in summary.inner_text()
    assert len(set(seen)) == len(seen)
    assert [e for e in page.errors if not any(n in e for n in noise)] == []


def test_keyboard_alone(lab, page):
    "Tab reaches every control in order, and the keys work on them"
    run_all(page, lab)
    old = picture(page)
    page.locator('.jp-Cell').last.get_by_text('[]').wait_for()
    panel = page.locator('.jp-OutputArea-output:has(img.widget-image)')
    keys = {'FocusNet': 'Enter', 'either': 'Enter', 'number': 'ArrowUp', 'Next': 'Enter', 'checkbox': 'Space', 'noUi-handle': 'PageDown'}
    focused = []
    panel.get_by_role('button', name='Baseline').focus()
    for _ in range(9):
        page.keyboard.press('Tab')
        focused.append(page.evaluate("""() => { const o = document.activeElement;
          return o.tagName == 'BUTTON' ? o.textContent.trim() : o.type || o.className.split(' ')[0] }"""))
        if focused[-1] in keys:
            page.keyboard.press(keys[focused[-1]])
            old = picture(page, old)
    assert focused == ['FocusNet', 'either', 'select-one', 'number', 'Previous', 'Next', 'number', 'checkbox', 'noUi-handle']
    assert [panel.get_by_label(o).input_value() for o in ('Pair', 'Image')] == ['2', '3']
    assert [e for e in page.errors if not any(n in e for n in noise)] == []
