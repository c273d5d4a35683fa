"What a user meets first: imports, names, packaging, README, the demo."
import configparser, json, os, re, subprocess, sys
from pathlib import Path
import pytest
from helpers import fresh
from helpers.kernels import pictures, printed

root = Path(__file__).resolve().parent.parent
settings = configparser.ConfigParser(delimiters=['='], interpolation=None)
settings.read(root/'settings.ini', encoding='utf-8')
cfg = settings['DEFAULT']


def python(code, **kw):
    "Run `code` in a new interpreter, which has imported nothing"
    env = {**os.environ, **kw.pop('env', {})}
    return subprocess.run([sys.executable, '-W', 'ignore', '-c', code], capture_output=True, text=True, timeout=300, env=env, **kw)


@pytest.mark.slow
def test_names_do_not_collide_with_fastai():
    "Both star imports together: no name of ours means something else in fastai.vision.all"
    out = fresh.python('''
import fastai.vision.all as fv, focusnet_fastai.all as ours
public = getattr(ours, '__all__', None) or [n for n in vars(ours) if not n.startswith('_')]
bad = [n for n in public if hasattr(fv, n) and getattr(fv, n) is not getattr(ours, n)]
print('BAD', bad); print('N', len(public))
from fastai.vision.all import *
from focusnet_fastai.all import *
dls = digits_dls(n_train=64)
assert resnet18.__module__.startswith('torchvision') and models.resnet18 is resnet18
learn = vision_learner(dls, resnet18, pretrained=False, n_in=1)
print('OK', learn.arch is resnet18, FocusNetCallback, hasattr(Learner, 'refocus'))
''')
    assert out.returncode == 0, out.stderr[-2000:]
    assert 'BAD []' in out.stdout and 'OK True' in out.stdout


@pytest.mark.slow
def test_star_import_hides_nothing():
    "Only names of ours come, and none that Python, PyTorch, NumPy, pandas or Matplotlib uses"
    out = fresh.python('''
import builtins, torch, torch.nn as nn, torch.nn.functional as F, numpy, pandas, matplotlib.pyplot as plt, torchvision.transforms.functional as TF, sklearn.metrics as M
import focusnet_fastai.all as ours
names = {}
exec('from focusnet_fastai.all import *', names)
names = [n for n in names if not n.startswith('__')]
print('BAD', [n for n in names for o in (builtins, torch, nn, F, numpy, pandas, plt, TF, M) if hasattr(o, n)])
print('OTHERS', [n for n in names if not getattr(getattr(ours, n), '__module__', 'focusnet_fastai').startswith('focusnet_fastai')])
print('N', len(names))
''')
    assert out.returncode == 0, out.stderr[-2000:]
    assert 'BAD []' in out.stdout and 'OTHERS []' in out.stdout and int(out.stdout.split()[-1]) > 40


def test_imports_from_an_uninstalled_checkout(tmp_path):
    "On PYTHONPATH alone; without metadata the version falls back"
    import shutil
    shutil.copytree(root/'focusnet_fastai', tmp_path/'focusnet_fastai', ignore=shutil.ignore_patterns('__pycache__'))
    code = f'''
import sys, importlib.metadata as m
def missing(name): raise m.PackageNotFoundError(name)
real = m.version
sys.path = [{str(tmp_path)!r}] + [p for p in sys.path if p not in ({str(root)!r}, '')]
m.version = lambda n: missing(n) if n == 'focusnet_fastai' else real(n)
import focusnet_fastai; print(focusnet_fastai.__version__, focusnet_fastai.__file__)
'''
    out = python(code, cwd=tmp_path, env={'PYTHONPATH': str(tmp_path)})
    assert out.returncode == 0, out.stderr
    assert out.stdout.startswith('0+unknown') and str(tmp_path) in out.stdout


def test_import_of_the_package_is_light():
    out = python('import sys, focusnet_fastai; print("torch" in sys.modules, "fastai" in sys.modules)')
    assert out.stdout.split() == ['False', 'False'], out.stderr


def test_packaging_facts_agree():
    text = (root/'pyproject.toml').read_text(encoding='utf-8')
    assert '[project]' not in text
    for key in ('lib_name', 'lib_path'): assert re.search(rf'^{key} = "{cfg["lib_name"]}"$', text, re.M), key
    targets = dict(o.split('=') for o in cfg['console_scripts'].split())
    out = python(f"from pkgutil import resolve_name\nfor o in {list(targets.values())!r}: assert callable(resolve_name(o)), o")
    assert targets and out.returncode == 0, out.stderr
    assert cfg['version'] in (root/'CHANGELOG.md').read_text(encoding='utf-8')


@pytest.mark.slow
def test_readme_is_made_from_the_index():
    out = subprocess.run([sys.executable, root/'tools/readme.py', '--check'], capture_output=True, text=True)
    assert out.returncode == 0, out.stderr


def test_links_of_the_readme_exist():
    text = (root/'README.md').read_text(encoding='utf-8')
    targets = re.findall(r'\]\((?!https?:|#)([^)#]+)', text) + re.findall(r'src="(?!https?:)([^"]+)"', text)
    assert targets
    for t in targets: assert (root/t).exists(), t


def headings(cells):
    "The anchors of a page"
    lines = [o for c in cells if c['cell_type'] == 'markdown' for o in ''.join(c['source']).splitlines() if o.startswith('#')]
    return {re.sub(r'[^\w -]', '', o.lstrip('#').strip().lower()).replace(' ', '-') for o in lines}


def test_links_of_the_notebooks_exist():
    "To other notebooks, files and headings"
    notebooks, n = [o for o in (root/'nbs').rglob('*.ipynb') if '.ipynb_checkpoints' not in str(o)], 0
    cells = {o.resolve(): json.loads(o.read_text(encoding='utf-8'))['cells'] for o in notebooks}
    for nb in cells:
        for text in (''.join(c['source']) for c in cells[nb] if c['cell_type'] == 'markdown'):
            for target in re.findall(r'\]\((?!https?:|mailto:|attachment:)([^)\s]+)\)', text) + re.findall(r'src="(?!https?:|data:|attachment:)([^"]+)"', text):
                path, _, anchor = target.partition('#')
                to, n = (nb.parent/path).resolve() if path else nb, n+1
                assert to.exists(), f'{nb.name}: {target}'
                if anchor and to in cells: assert anchor in headings(cells[to]), f'{nb.name}: {target}'
    assert n > 15


def test_tutorials_are_skipped_by_the_lessons():
    "Without a cell in the page that says so"
    from nbdev.test import _keep_file
    for nb in (root/'nbs/tutorials').glob('*.ipynb'):
        assert not _keep_file(nb, '.notest') and all(c['cell_type'] != 'raw' for c in json.loads(nb.read_text(encoding='utf-8'))['cells']), nb


def test_superuser_and_screen_of_the_lab():
    "`make lab` shows plots, uses all threads, and works in a container"
    env = {k: v for k, v in os.environ.items() if k not in ('MPLBACKEND', 'OMP_NUM_THREADS')}
    show = lambda target: subprocess.run(['make', '-n', '-o', '.venv/.dev', target], cwd=root, capture_output=True, text=True, env=env).stdout
    assert 'jupyter lab' in show('lab') and 'agg' not in show('lab') and 'OMP' not in show('lab') and '--allow-root' in show('lab')
    assert all('MPLBACKEND=agg OMP_NUM_THREADS=1' in show(o) for o in ('lessons', 'pytest', 'quick', 'test-browser'))


def run_cli(name, *args, **kw):
    "Run a command as installed, in a new interpreter"
    return subprocess.run([Path(sys.executable).parent/name, *args], capture_output=True, text=True, timeout=300,
                          env={**os.environ, 'PYTHONWARNINGS': 'ignore'}, **kw)


@pytest.mark.slow
def test_demo_from_a_shell(tmp_path):
    out = run_cli('focusnet-demo', '--seeds', '2', '--n-train', '100', '--epochs', '8', '--out', str(tmp_path/'demo.png'))
    assert out.returncode == 0, out.stderr[-2000:]
    for word in ('seed 0', 'seed 1', 'baseline', 'twice as long', 'focusnet', 'Most confused', 'Verdict', '95 % interval'): assert word in out.stdout, word
    assert '\r' not in out.stdout and (tmp_path/'demo.png').read_bytes().startswith(b'\x89PNG')


@pytest.mark.parametrize('args,words', [(('--n-train', '5000'), '--n-train must lie between 10 and 1000'), (('--seeds', '0'), '--seeds must be at least 1'),
                                        (('--out', '/nowhere/at/all.png'), 'cannot be written')])
def test_demo_mistakes(args, words):
    out = run_cli('focusnet-demo', *args)
    assert out.returncode != 0 and words in out.stderr and 'Traceback' not in out.stderr


def test_help_of_every_command():
    for script in cfg['console_scripts'].split():
        out = run_cli(script.split('=')[0], '--help')
        assert out.returncode == 0 and 'usage' in out.stdout and 'Traceback' not in out.stderr, script


@pytest.mark.slow
def test_modules_out_of_step_are_noticed(tmp_path):
    "The check of `make check` fails when a module or a notebook was edited by hand"
    import shutil
    for d in ('nbs', 'focusnet_fastai', 'tools'): shutil.copytree(root/d, tmp_path/d, ignore=shutil.ignore_patterns('__pycache__', 'models'))
    for f in ('pyproject.toml', 'settings.ini'): shutil.copy(root/f, tmp_path/f)
    shutil.copy(root/'focusnet_fastai/models.py', tmp_path/'focusnet_fastai/models.py')
    check = lambda: subprocess.run([sys.executable, tmp_path/'tools/in_step.py'], capture_output=True, text=True, timeout=300)
    out = check()
    assert out.returncode == 0, out.stderr
    module = tmp_path/'focusnet_fastai/loss.py'
    module.write_text(module.read_text(encoding='utf-8') + '\nx = 1\n', encoding='utf-8')
    out = check()
    assert out.returncode != 0 and 'loss.py' in out.stderr


@pytest.mark.slow
def test_demo_is_reproducible():
    "The same seed gives the same numbers, whatever ran before"
    from focusnet_fastai.app.demo import train_seed
    runs = [{k: c.z for k, c in train_seed(s, n_train=64, n_epoch=2).items()} for s in (3, 4, 3)]
    for k in runs[0]:
        assert (runs[0][k] == runs[2][k]).all() and not (runs[0][k] == runs[1][k]).all()


@pytest.mark.slow
def test_figure_from_a_shell(tmp_path):
    out = run_cli('focusnet-figure', '2', '--out', str(tmp_path/'f.png'), '--n', '2')
    assert out.returncode == 0, out.stderr[-2000:]
    assert (tmp_path/'f.png').read_bytes().startswith(b'\x89PNG')


@pytest.mark.parametrize('args,words', [(('5',), 'Figures 1, 2, 3 and 4'), (('1', '--base', 'no.pkl', '--learn', 'no.pkl', '--images', '.'), 'no file no.pkl'), (('2', '--images', 'nowhere'), 'no folder'),
                                        (('3', '--out', 'x.doc'), 'must end in')])
@pytest.mark.slow
def test_figure_mistakes(args, words, tmp_path):
    out = fresh.command('focusnet-figure', *args, cwd=tmp_path)
    assert out.returncode != 0 and words in out.stderr and 'Traceback' not in out.stderr


@pytest.mark.slow
def test_figure_of_own_learners_and_folder(tmp_path):
    "Two exported learners and a folder of images, one folder for each class"
    from PIL import Image
    from focusnet_fastai.see.examples import digit_learners
    base, learn = digit_learners(n_train=100, n_epoch=4)
    for l, f in ((base, 'base.pkl'), (learn, 'learn.pkl')):
        l.path = tmp_path
        l.export(f)
    for i in range(12):
        x, y = base.dls.valid_ds[i]
        folder = tmp_path/'images'/str(int(y))
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray((x[0].numpy()*255).round().astype('uint8') if x.is_floating_point() else x[0].numpy()).save(folder/f'{i}.png')
    out = fresh.command('focusnet-figure', '2', '--base', 'base.pkl', '--images', 'images', '--out', 'own.svg', cwd=tmp_path)
    assert out.returncode == 0, out.stderr[-2000:]
    assert '<svg' in (tmp_path/'own.svg').read_text(encoding='utf-8')


@pytest.mark.slow
def test_block_of_the_readme_shows_its_results(kernel, tmp_path):
    "Pasted into one cell, on digits: the comparison as text, and the figure"
    block = re.search(r'```python\n(from fastai.*?)```', (root/'README.md').read_text(encoding='utf-8'), re.S)[1]
    for old, new in (('imagewoof_dls(size=128)', 'digits_dls()'), ('resnet18(num_classes=dls.c)', 'lenet5(dls.c)'), ('dls   = ', 'set_seed(0)\ndls   = ')):
        assert old in block
        block = block.replace(old, new)
    kernel.shown(f'import os; os.chdir({str(tmp_path)!r})')
    shown = kernel.shown(block)
    assert 'McNemar' in printed(shown) and pictures(shown) == 1 and len(block.strip().splitlines()) == 10
