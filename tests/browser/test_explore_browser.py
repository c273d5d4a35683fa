"""The explorer in a real JupyterLab and a real browser, as a user meets it. `make test-browser` runs it, and installs Chromium where it can.

With FOCUSNET_SCREENSHOTS=FOLDER the test leaves pictures of the page there."""
import json, os, shutil, socket, subprocess, sys, time
from pathlib import Path
import nbformat, pytest
from nbformat.v4 import new_code_cell, new_notebook

pytestmark = pytest.mark.slow
root = Path(__file__).resolve().parents[2]
cells = dict(imports='from fastai.vision.all import *\nfrom focusnet_fastai.all import *',
             train='base,learn = digit_learners(n_train=120, n_epoch=4)',
             explore="ex = explore(learn, base, labels='marks.csv')\nex",
             marked="print(ex.marked.to_json(orient='records'))")
# Complaints of JupyterLab's own page that have nothing to do with a notebook; every other error fails the test
noise = ()


@pytest.fixture(scope='module')
def lab_folder(tmp_path_factory):
    "Where the notebook lies"
    return tmp_path_factory.mktemp('lab')/'work'


@pytest.fixture(scope='module')
def lab(lab_folder):
    "A JupyterLab server on an empty folder with one notebook and no settings of this machine; its address"
    tmp = lab_folder.parent
    work, own = lab_folder, {f'JUPYTER_{o}_DIR': str(tmp/o) for o in ('CONFIG', 'DATA', 'RUNTIME')}
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
  const img = document.querySelector('.focus-explorer img');
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


@pytest.fixture(autouse=True)
def no_marks(lab_folder):
    "Each test begins without marks"
    (lab_folder/'marks.csv').unlink(missing_ok=True)


def run_all(page, url):
    "Open the notebook and run it, when its kernel is ready"
    page.goto(f'{url}lab/tree/explore.ipynb?token=explore&reset')
    page.locator('#jp-main-statusbar', has_text='| Idle').wait_for()
    page.get_by_role('menuitem', name='Run', exact=True).click()
    page.get_by_role('menuitem', name='Run All Cells', exact=True).click()


def opened(page, lab):
    "The panel, when its first picture is there and the notebook has run"
    run_all(page, lab)
    seen = [picture(page)]
    page.locator('#jp-main-statusbar', has_text='| Idle').wait_for()
    page.locator('.jp-Cell').last.get_by_text('[]').wait_for()  # the last cell has run: no image is marked yet
    return page.locator('.focus-explorer'), seen


def wrong(page): return [e for e in page.errors if not any(n in e for n in noise)]


def test_explorer(lab, page):
    "Run all, search a pair, change strength, image, fineness and mark: each changes the picture, and nothing complains"
    panel, seen = opened(page, lab)
    pairs, summary = panel.get_by_label('Confused pairs'), panel.locator('p')
    shot(page, '1-opened')

    everything = pairs.locator('option').all_inner_texts()
    name = everything[2].split(' → ')[1].split(' ')[0]
    panel.get_by_label('Search').fill(name)
    listed = pairs.locator('option').all_inner_texts()
    assert 0 < len(listed) < len(everything) and listed == [o for o in everything if name in o.split(' (')[0]]
    shot(page, '2-searched')
    panel.get_by_label('Search').fill('')
    assert len(pairs.locator('option').all()) == len(everything) > 3
    pairs.select_option(index=2)
    seen.append(picture(page, seen[-1]))
    assert panel.get_by_label('Pair', exact=True).input_value() == '3'

    panel.get_by_label('Strength of the maps').focus()
    page.keyboard.press('PageDown')
    seen.append(picture(page, seen[-1]))
    panel.get_by_label('Fineness of the maps').select_option('2')
    seen.append(picture(page, seen[-1]))

    before = summary.inner_text()
    panel.get_by_role('button', name='Next').click()
    seen.append(picture(page, seen[-1]))
    assert summary.inner_text() != before and panel.get_by_label('Image', exact=True).input_value() == '2'

    panel.get_by_role('checkbox').check()
    seen.append(picture(page, seen[-1]))
    assert '1 marked, kept in marks.csv' in panel.inner_text()
    shot(page, '3-marked')
    panel.get_by_label('Right label').select_option('drop')
    page.wait_for_function("document.querySelector('.focus-explorer p').textContent.endsWith('it is drop')")

    page.locator('.jp-Cell').last.locator('.cm-content').click()
    page.keyboard.press('Control+Enter')
    row = page.locator('.jp-Cell').last.get_by_text('"true"').inner_text()
    (row,) = json.loads(row)
    assert f"Image {row['index']}, labelled {row['true']}:" in summary.inner_text() and f"Baseline says {row['baseline']} " in summary.inner_text()
    assert row['label'] == 'drop' and len(set(seen)) == len(seen) and wrong(page) == []

    page.reload()  # the marks are there again after another run of the notebook
    page.locator('#jp-main-statusbar', has_text='| Idle').wait_for()
    page.get_by_role('menuitem', name='Run', exact=True).click()
    page.get_by_role('menuitem', name='Run All Cells', exact=True).click()
    page.locator('.focus-explorer', has_text='1 marked').wait_for()


def test_keyboard_alone(lab, page):
    "Tab reaches every control in order, and the keys work on them, those in the list too"
    panel, (old,) = opened(page, lab)
    keys = {'FocusNet': 'Enter', 'either': 'Enter', 'Confused pairs': 'ArrowDown', 'number': 'ArrowUp', 'Next': 'Enter', 'range': 'PageDown'}
    focused = []
    panel.get_by_role('button', name='Baseline').focus()
    for _ in range(14):
        page.keyboard.press('Tab')
        focused.append(page.evaluate("""() => { const o = document.activeElement;
          return o.tagName == 'BUTTON' ? o.textContent : o.ariaLabel || o.type }"""))
        if focused[-1] in keys:
            page.keyboard.press(keys[focused[-1]])
            old = picture(page, old)
    assert focused == ['FocusNet', 'either', 'search', 'Confused pairs', 'number', 'Previous', 'Next', 'number', 'checkbox', 'Right label', 'range',
                       'warm classes', 'the wrong class', 'Fineness of the maps']
    assert [panel.get_by_label(o, exact=True).input_value() for o in ('Pair', 'Image')] == ['3', '3'] and wrong(page) == []
