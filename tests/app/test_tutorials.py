"Each tutorial from end to end, with sizes reduced through the environment."
import os
from pathlib import Path
import nbformat, pytest
from nbclient import NotebookClient
from fastai.data.external import fastai_cfg

root = Path(__file__).resolve().parents[2]
data = fastai_cfg().path('data')


def run(name, **env):
    "Run a tutorial with these settings in its environment; the executed notebook"
    nb = nbformat.read(root/f'nbs/tutorials/{name}.ipynb', as_version=4)
    old = dict(os.environ)
    os.environ.update(env, OMP_NUM_THREADS='1')
    try: NotebookClient(nb, timeout=600, kernel_name='python3', resources={'metadata': {'path': str(root/'nbs/tutorials')}}).execute()
    finally:
        os.environ.clear()
        os.environ.update(old)
    return nb


def texts(nb, cell):
    c = next(c for c in nb.cells if c.get('id') == cell)
    return ' '.join(str(o.get('text') or o.get('data', {}).get('text/plain')) for o in c.outputs)


def test_every_tutorial_has_a_test():
    names = {p.stem for p in (root/'nbs/tutorials').glob('*.ipynb')}
    source = Path(__file__).read_text(encoding='utf-8')
    assert names and all(f"run('{n}'" in source for n in names), names


@pytest.mark.slow
def test_imagewoof():
    if not (data/'imagewoof2-160').exists(): pytest.skip('Imagewoof is not installed: untar_data(URLs.IMAGEWOOF_160) installs it')
    hub = Path(os.environ.get('TORCH_HOME', Path.home()/'.cache/torch'))/'hub/checkpoints'
    if not list(hub.glob('mobilenet_v2-*')): pytest.skip('The ImageNet weights of MobileNetV2 are not in the cache of torchvision')
    nb = run('imagewoof', FOCUSNET_EPOCHS='1', FOCUSNET_PER_BREED='6', FOCUSNET_SIZE='64')
    assert 'McNemar' in texts(nb, 'compare') and 'focusnet' in texts(nb, 'figure-4')
    for cell in ('figure-1', 'figure-2', 'figure-4-plot'):
        c = next(c for c in nb.cells if c.get('id') == cell)
        assert any('image/png' in o.get('data', {}) for o in c.outputs), cell


@pytest.mark.slow
def test_your_photos(tmp_path):
    "With a folder of one's own, one photo of which is damaged"
    from focusnet_fastai.app.photo_network import digit_photos
    photos = digit_photos(tmp_path/'photos', (3, 8, 9), n=20)
    (photos/'3'/'zz.png').write_bytes(b'no image')
    (tmp_path/'out').mkdir()
    # an empty cache of weights: the tutorial goes on with random ones where there is no network either
    nb = run('your_photos', FOCUSNET_PHOTOS=str(photos), FOCUSNET_EPOCHS='1', FOCUSNET_SIZE='32', FOCUSNET_OUT=str(tmp_path/'out'), TORCH_HOME=str(tmp_path), FASTAI_HOME=str(tmp_path/'fastai'),
             http_proxy='http://127.0.0.1:9', https_proxy='http://127.0.0.1:9')
    assert "(48, 12, ['3', '8', '9']" in ' '.join(texts(nb, 'data').split()) and 'no image' in texts(nb, 'data')
    assert 'cannot be had' in texts(nb, 'baseline') and 'McNemar' in texts(nb, 'compare') and 'report.html' in texts(nb, 'report')
    assert sorted(o.name for o in (tmp_path/'out').iterdir()) == ['focusnet.pkl', 'focusnet.pth', 'report.html']
    assert any(f"('{c}', " in texts(nb, 'predict') for c in (3, 8, 9))


@pytest.mark.slow
def test_compare_methods():
    nb = run('compare_methods', FOCUSNET_SEEDS='1', FOCUSNET_EPOCHS='1', FOCUSNET_TRAIN='50')
    shown = next(c for c in nb.cells if c.get('id') == 'table').outputs[-1]['data']['text/html']
    from focusnet_fastai.methods.registry import methods
    assert all(o in shown for o in methods), set(methods)
    assert any('image/png' in o.get('data', {}) for o in next(c for c in nb.cells if c.get('id') == 'plot').outputs)
