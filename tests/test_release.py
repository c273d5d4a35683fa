"What a maintainer relies on: workflows that call the Makefile, facts that agree, archives that hold the package and nothing else"
import email, re, runpy, shutil, subprocess, sys, zipfile
from configparser import ConfigParser
from pathlib import Path
import pytest, setuptools, yaml

root = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(root/'tools'))
import dist  # noqa: E402

parser = ConfigParser(delimiters=['='], interpolation=None)
parser.read(root/'settings.ini', encoding='utf-8')
cfg = parser['DEFAULT']
workflows = {o.name: yaml.safe_load(o.read_text(encoding='utf-8')) for o in (root/'.github/workflows').glob('*.yml')}
make = (root/'Makefile').read_text(encoding='utf-8')


def steps(): return [o for w in workflows.values() for job in w['jobs'].values() for o in job['steps']]


def test_workflows_call_the_makefile():
    "Tests, docs and release: nothing is done there that nobody can do at home"
    assert set(workflows) == {'tests.yml', 'docs.yml', 'release.yml'}
    said = [o['run'] for o in steps() if 'run' in o]
    assert said
    for o in said: assert re.match(r'make [\w-]+', o) and f'\n{o.split()[1]}:' in make, o


def test_workflows_try_the_pythons_that_are_promised():
    matrix = workflows['tests.yml']['jobs']['quick']['strategy']['matrix']['python']
    assert matrix[0] == cfg['min_python'] and len(matrix) == int(matrix[-1][2:])-int(matrix[0][2:])+1
    assert all(o in (root/'.github/workflows/release.yml').read_text(encoding='utf-8') for o in (f"python{matrix[0]}", f"python{matrix[-1]}"))


def test_help_names_every_target():
    targets = re.search(r'^\.PHONY: (.+)$', make, re.M)[1].split()
    assert {o for o in targets if f'make {o} ' not in make} <= {'help', 'check', 'lessons', 'pytest', 'clean'}


def test_facts_agree():
    "Version and licence stand in several files"
    citation = yaml.safe_load((root/'CITATION.cff').read_text(encoding='utf-8'))
    assert citation['version'] == cfg['version'] and citation['license'] == cfg['license']
    assert citation['preferred-citation']['title'].startswith('FocusNet') and f"## {cfg['version']}" in (root/'CHANGELOG.md').read_text(encoding='utf-8')


def test_issue_forms_ask_for_what_is_needed():
    forms = {o.stem: yaml.safe_load(o.read_text(encoding='utf-8')) for o in (root/'.github/ISSUE_TEMPLATE').glob('*.yml')}
    required = {k: {o['id'] for o in f.get('body', []) if o.get('validations', {}).get('required')} for k, f in forms.items()}
    assert 'versions' in required['bug'] and 'comparison' in required['result'] and 'goal' in required['wish']


def test_docs_and_release_are_no_business_of_users():
    for o in ('sphinx', 'myst-nb', 'twine', 'build'):
        assert o not in re.sub(r'[<>=.\d]+', '', cfg['requirements']).split() and o in cfg['docs_requirements'] + cfg['release_requirements']


def test_links_on_pypi(monkeypatch):
    "With the address of the repository, links and pictures of README are whole; without it they stay as they are"
    given = {}
    monkeypatch.setattr(setuptools, 'setup', lambda **kw: given.update(kw))
    names = runpy.run_path(str(root/'setup.py'))
    assert '](nbs/results.ipynb)' in given['long_description'] and not given['project_urls']
    names['cfg']['url'] = 'https://host/x'
    text = names['description']()
    assert '](https://host/x/blob/main/nbs/results.ipynb)' in text and '](https://host/x/raw/main/nbs/images/' in text and '](nbs' not in text


def test_surplus_is_noticed():
    good = ['focusnet_fastai/loss.py', 'focusnet_fastai-0.3.0.dist-info/METADATA', 'README.md']
    bad = ['tests/test_loss.py', 'nbs/00_loss.ipynb', 'x/results/a.csv', 'fig.png', 'models/a.pth', 'focusnet_fastai/__pycache__/a.pyc']
    assert dist.surplus(good) == [] and dist.surplus(good+bad) == sorted(bad)
    assert 'focusnet_fastai/loss.py' in dist.missing([]) and 'focusnet_fastai/loss.py' not in dist.missing(good)


@pytest.mark.slow
def test_archives(tmp_path):
    "Built from a copy of everything: each holds all modules, none a test, a notebook or a result; the wheel is small, its metadata whole"
    copy = tmp_path/'copy'
    shutil.copytree(root, copy, ignore=shutil.ignore_patterns('.git', '.venv', 'build', 'dist', '*.egg-info', '_build*', '_source', '__pycache__', 'jupyter_execute', '*.pth'))
    code = f'from setuptools import build_meta as b; b.build_wheel({str(tmp_path)!r}); b.build_sdist({str(tmp_path)!r})'
    out = subprocess.run([sys.executable, '-c', code], cwd=copy, capture_output=True, text=True, timeout=300)
    assert out.returncode == 0, out.stderr[-3000:]
    wheel, sdist = next(tmp_path.glob('*.whl')), next(tmp_path.glob('*.tar.gz'))
    for o in (wheel, sdist): assert dist.surplus(dist.contents(o)) == [] and dist.missing(dist.contents(o)) == [], o
    assert wheel.stat().st_size < 500_000
    with zipfile.ZipFile(wheel) as f: meta = email.message_from_bytes(f.read(next(o for o in f.namelist() if o.endswith('METADATA'))))
    assert meta['Name'] == cfg['lib_name'] and meta['Version'] == cfg['version'] and meta['Requires-Python'] == f">={cfg['min_python']}"
    assert meta['License-Expression'] == cfg['license'] and {'docs', 'release', 'explore'} <= set(meta.get_all('Provides-Extra'))
    assert 'focusnet_fastai' in meta.get_payload() and 'settings.ini' in dist.contents(sdist)
