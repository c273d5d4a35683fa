"What was measured: the packed studies of results/, and the page that shows them."
import importlib, json, re
from pathlib import Path

import pytest

from focusnet_fastai.lab.paper import mean_sd, results
from focusnet_fastai.lab.config import run_config
from focusnet_fastai.lab.study import config_hash, pack_runs, packed_logs, read_pack, unpack_runs

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.skipif(not (ROOT/'results').is_dir(), reason='the results are not part of an installation')
STUDIES = {'choice/digits-200': 55, 'cpu/cifar-2000': 50, 'cpu/digits-200': 100, 'cpu/mnist-1000': 75, 'cpu/mnist-5000': 35, 'cpu/mnist-all': 35}
STUDIES |= (LATER := {'cpu/mnist-full': 9})


@pytest.mark.parametrize('name', STUDIES)
def test_study(name, tmp_path):
    "Complete, undamaged, and the same table from folders; packed again, the same bytes"
    study = ROOT/'results'/name
    df = results(study)
    assert len(df) == STUDIES[name] and df.finished.all() and df.folder.is_unique
    later = ['temperature', 'nll_calibrated', 'ece_calibrated']  # most studies are from before there were any
    assert df.ece.notna().all() and (df[later].notna() == (name in LATER)).all(axis=None)
    assert unpack_runs(study, tmp_path/'out') == len(df)
    again = results(tmp_path/'out')
    assert again.drop(columns='folder').equals(df.drop(columns='folder'))
    pack_runs(tmp_path/'out', tmp_path/'packed')
    for o in ('runs.jsonl', 'logs.csv.gz'): assert (tmp_path/'packed'/o).read_bytes() == (study/o).read_bytes()
    for run in read_pack(study/'runs.jsonl'):  # the last line of each log is the result
        rows = packed_logs_of(study)[run.folder.relative_to(study).as_posix()]
        last = dict(zip(rows[0], rows[-1]))
        assert len(rows)-1 == run.result['epochs'] and all(float(last[k]) == pytest.approx(v) for k, v in run.result['last'].items())


CACHE = {}
def packed_logs_of(study): return CACHE.setdefault(study, packed_logs(study)) if study not in CACHE else CACHE[study]


def test_configurations_are_found_today():
    "What was run is what a recipe and a method of today ask for, so it is not run again"
    for name in STUDIES:
        for run in read_pack(ROOT/'results'/name/'runs.jsonl'):
            c = run.config
            settings = {k: v for o in (c['recipe_settings'], c['method_settings']) for k, v in o.items() if k != 'seed'}
            base = c['baseline'] and {k: v for k, v in c['baseline']['recipe_settings'].items() if k != 'seed'}
            assert config_hash(run_config(c['recipe'], c['method'], c['seed'], base=base, **settings)) == run.hash, run


BEFORE = {  # the page's first table, before the runs were packed: accuracy of the last epoch
    'digits-200': {'baseline': '89.95 ± 1.35 (10)'}}


def test_page_shows_these_numbers():
    "The outputs in results.ipynb are those of the packed runs"
    cells = {c['id']: c for c in json.loads((ROOT/'nbs'/'results.ipynb').read_text(encoding='utf-8'))['cells']}
    for name, epochs in {'digits-200': 30, 'mnist-1000': 6, 'mnist-5000': 5, 'mnist-all': 1, 'mnist-full': 200, 'cifar-2000': 15}.items():
        df = results(ROOT/'results'/'cpu'/name)
        ours = df[(df.method == 'baseline') & (df.epochs == epochs)].accuracy*100
        shown = ''.join(cells[f'{name}-table']['outputs'][0]['data']['text/html'])
        found = re.findall(r'>([\d.]+ ± [\d.]+ \(\d+\))<', shown)
        assert mean_sd(ours.tolist()) in found, (name, mean_sd(ours.tolist()), found)


SCRIPTS = dict(regimes=('cpu/regimes', 814), pretrained=('cpu/pretrained', 354), imagewoof=('gpu/imagewoof-24', 15))


@pytest.mark.parametrize('script', SCRIPTS)
def test_scripts_ask_for_these_runs(script, monkeypatch):
    "What a script of results/ would train today is what is packed, row by row; runs on which settings were chosen have seeds from 100 on"
    if script == 'pretrained': pytest.importorskip('timm')
    monkeypatch.syspath_prepend(ROOT/'results')
    name, n = SCRIPTS[script]
    module, runs = importlib.import_module(script), read_pack(ROOT/'results'/name/'runs.jsonl')
    asked = {config_hash(run_config(recipe, method, seed, **settings, **own, epochs=epochs*factor))
             for recipe, settings, epochs, seeds in module.REGIMES.values()
             for method, own, factor in module.ARMS.values() for seed in seeds}
    assert len(runs) == n and all(o.config['seed'] >= 100 for o in runs if o.hash not in asked)
    assert all(o.result['epochs'] == o.config['recipe_settings']['epochs'] for o in runs)


@pytest.mark.parametrize('script', ['regimes', 'pretrained'])
def test_tables_are_those_of_the_measures(script, monkeypatch):
    "A table that was left behind when runs were added would say what is no longer true"
    if script == 'pretrained': pytest.importorskip('timm')
    monkeypatch.syspath_prepend(ROOT/'results')
    module, regimes = map(importlib.import_module, (script, 'regimes'))
    out = ROOT/'results'/'cpu'/script
    rows = [json.loads(o) for o in (out/'measures.jsonl').read_text().splitlines()]
    assert (out/'table.md').read_text() == regimes.table(rows, module.ARMS)+'\n'


def test_probe_is_compared_with_the_trainings_of_today(monkeypatch):
    "The table of the probe holds gains of whole trainings, which change with every new seed"
    pytest.importorskip('timm')
    monkeypatch.syspath_prepend(ROOT/'results')
    probe, cpu = importlib.import_module('probe'), ROOT/'results'/'cpu'
    rows = [json.loads(o) for o in (cpu/'probe.jsonl').read_text().splitlines()]
    assert (cpu/'probe.md').read_text() == probe.table(rows)+'\n'


def test_readme_says_what_was_measured(monkeypatch):
    "The table of the README is that of the measures"
    monkeypatch.syspath_prepend(ROOT/'tools')
    drawn = importlib.import_module('regime_map')
    assert drawn.table(drawn.measures()) in (ROOT/'README.md').read_text(encoding='utf-8')
