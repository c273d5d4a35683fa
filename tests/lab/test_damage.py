"Files that cannot lie: what a run reads back is what was written, or the file is named. 200 mutations a kind of file."
import json, pickle, random, shutil

import pytest, torch
from fastai.vision.all import noop

from focusnet_fastai.record import RunError
from focusnet_fastai.lab.checkpoint import read_checkpoint
from focusnet_fastai.lab.files import Damaged, digest, parse_torch, read_bytes, write_signed
from focusnet_fastai.lab.paper import results
from focusnet_fastai.lab.runs import read_weights, run, run_seeds
from focusnet_fastai.lab.config import find_run, run_config
from focusnet_fastai.lab.study import pack_runs, packed_logs, read_about, read_pack, read_result, unpack_runs

SMALL = dict(n_train=64, epochs=2, log=noop)


# -- mutations --------------------------------------------------------------------------------------------------------

def flip(data, rng):
    i = rng.randrange(len(data))
    return data[:i] + bytes([data[i] ^ 1 << rng.randrange(8)]) + data[i+1:]


def block(data, rng):
    "Where something happens: start and end"
    i = rng.randrange(len(data))
    return i, min(len(data), i + rng.choice([1, 4, 16, 64, 512]))


def cut(data, rng): return data[:rng.randrange(len(data))]
def behead(data, rng): return data[rng.randrange(1, len(data)):]
def zero(data, rng): i, j = block(data, rng); return data[:i] + bytes(j-i) + data[j:]
def lose(data, rng): i, j = block(data, rng); return data[:i] + data[j:]
def double(data, rng): i, j = block(data, rng); return data[:j] + data[i:]
def noise(data, rng): i, j = block(data, rng); return data[:i] + rng.randbytes(j-i) + data[j:]
def swap(data, rng): i, j = sorted(rng.sample(range(len(data)), 2)); return data[:i] + data[j:j+1] + data[i+1:j] + data[i:i+1] + data[j+1:]


def digit(data, rng):
    "Another number, which no format minds"
    at = [i for i, o in enumerate(data) if 48 <= o <= 57]
    if not at: return flip(data, rng)
    i = rng.choice(at)
    return data[:i] + bytes([48 + (data[i]-48 + rng.randrange(1, 10)) % 10]) + data[i+1:]


def line(data, rng):
    "A line less"
    lines = data.splitlines(keepends=True)
    del lines[rng.randrange(len(lines))]
    return b''.join(lines)


MUTATIONS = [flip, flip, flip, flip, digit, digit, cut, behead, zero, lose, double, noise, swap, line]


def same(a, b):
    "Equal to the last bit"
    if isinstance(a, torch.Tensor): return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict): return isinstance(b, dict) and list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)): return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return a == b


def tried(path, read, n=200):
    "Damages a file in `n` ways: each time the result is the same, or the file is named. How often it was named"
    good, rng, named = path.read_bytes(), random.Random(path.name), 0
    want = read()
    for i in range(n):
        f = MUTATIONS[i % len(MUTATIONS)]
        path.write_bytes(f(good, rng))
        try: got = read()
        except RunError as e:
            assert str(path) in str(e) and ('remove' in str(e) or 'put back' in str(e)), f'{f.__name__}: {e}'
            named += 1
        else: assert same(got, want), f'{f.__name__} {i} goes unnoticed'
    path.write_bytes(good)
    assert same(read(), want)
    return named


# -- each kind of file ------------------------------------------------------------------------------------------------

@pytest.fixture(scope='module')
def made(tmp_path_factory):
    "A FocusNet with its baseline, and the same runs packed"
    root = tmp_path_factory.mktemp('made')
    run('digits', 'focusnet', 0, root/'runs'/'focus', **SMALL)
    pack_runs(root/'runs', root/'packed')
    return root


@pytest.fixture()
def runs(made, tmp_path):
    "A copy that may be damaged"
    shutil.copytree(made/'runs', tmp_path/'runs')
    return tmp_path/'runs'


@pytest.fixture()
def packed(made, tmp_path):
    shutil.copytree(made/'packed', tmp_path/'packed')
    return tmp_path/'packed'


def small_state(path):
    "A checkpoint of few bytes, so that mutations meet its structure too"
    o = dict(names=['epoch', 'accuracy'], rows=[[0, .5], [1, .75]], train_seconds=1.5, peak=10, stopped=False, of='0123456789',
             state=dict(model=dict(w=torch.arange(12.), n=torch.tensor(3)), opt=dict(state=[], hypers=[dict(lr=.1)])), parts=[dict(cbs={})])
    torch.save(o, path)
    return path


def test_checkpoint(tmp_path):
    path = small_state(tmp_path/'checkpoint.pth')
    assert tried(path, lambda: read_checkpoint(path, '0123456789')) > 150


def test_weights(runs):
    "Any other byte is noticed by the digest in the result; without one, as older runs have it, by the archive's checksums"
    res, path = read_result(runs/'focus'), runs/'focus'/'weights.pth'
    assert tried(path, lambda: read_weights(runs/'focus', res)) == 200
    torch.save(dict(w=torch.arange(12.)), path)
    assert tried(path, lambda: parse_torch(read_bytes(path), path)) > 100


@pytest.mark.parametrize('name, read', [('config.json', read_about), ('result.json', lambda o: read_result(o, read_about(o)['hash']))])
def test_json(runs, name, read):
    "Also a number that is only a better one"
    assert tried(runs/'focus'/name, lambda: read(runs/'focus')) > 150


def test_packed(packed):
    "Runs and logs, each by itself and both together"
    read = lambda: [(str(o.folder), o.about, o.result) for o in read_pack(packed/'runs.jsonl')]
    assert tried(packed/'runs.jsonl', read) > 190
    assert tried(packed/'logs.csv.gz', lambda: packed_logs(packed)) > 150


# -- what becomes of it -----------------------------------------------------------------------------------------------

@pytest.mark.slow
def test_one_damaged_run_does_not_block_others(runs):
    "It is named in a warning; the damaged run itself is refused, and goes on after what the message says"
    other = runs/'other'
    for name, data in {'a-cut': '{"config": ', 'an-empty': '', 'another': '[1, 2'}.items():
        (runs/name).mkdir()
        (runs/name/'config.json').write_text(data)
    with pytest.warns(UserWarning, match='config.json is damaged'): run('digits', 'kd', 0, other, **SMALL)
    with pytest.warns(UserWarning, match='config.json is damaged'): assert len(results(runs)) == 3
    with pytest.raises(RunError, match='another/config.json is damaged .*: remove this file'): run('digits', 'kd', 0, runs/'another', **SMALL)
    (runs/'another'/'config.json').unlink()
    with pytest.warns(UserWarning): assert run('digits', 'kd', 0, runs/'another', **SMALL)['last'] == read_result(other)['last']


def test_damaged_result_is_written_again(runs):
    "From the checkpoint, with the same numbers"
    path, want = runs/'focus'/'result.json', read_result(runs/'focus')
    for data in (b'', path.read_bytes().replace(b'"epochs": 2', b'"epochs": 3')):
        path.write_bytes(data)
        with pytest.raises(RunError, match='focus/result.json is damaged .*: remove this file, and the same call writes it again from the checkpoint'):
            run('digits', 'focusnet', 0, runs/'focus', **SMALL)
        path.unlink()
        again = run('digits', 'focusnet', 0, runs/'focus', **SMALL)
        assert all(again[k] == want[k] for k in ('last', 'best', 'ece', 'baseline', 'fixed', 'broken', 'weights'))


@pytest.mark.slow
def test_damaged_baseline_is_named(runs):
    "Empty, cut, or with one bit flipped; removed, it is written again with the same bits"
    base = find_run(runs, run_config('digits', 'baseline', 0, n_train=64, epochs=2))
    path, good = base/'weights.pth', (base/'weights.pth').read_bytes()
    for i, data in enumerate((b'', good[:500], flip(good, random.Random(0)))):
        path.write_bytes(data)
        with pytest.raises(RunError, match='weights.pth is damaged'): run('digits', 'kd', 0, runs/f'kd-{i}', **SMALL)
        assert not (runs/f'kd-{i}'/'checkpoint.pth').exists()
    path.unlink()
    run('digits', 'kd', 0, runs/'kd-0', **SMALL)
    assert path.read_bytes() == good


def test_checkpoint_of_other_settings(runs):
    "A folder whose config.json was removed does not go on as another run"
    folder = runs/'focus'
    for o in ('config.json', 'result.json'): (folder/o).unlink()
    with pytest.raises(RunError, match='checkpoint.pth belongs to other settings'): run('digits', 'focusnet', 0, folder, **SMALL, alpha=.5)


def test_result_of_another_run(runs):
    "Copied into a folder, it is not taken for this run's"
    base = find_run(runs, run_config('digits', 'baseline', 0, n_train=64, epochs=2))
    shutil.copy(base/'result.json', runs/'focus'/'result.json')
    with pytest.raises(RunError, match='it is the result of'): run('digits', 'focusnet', 0, runs/'focus', **SMALL)


def test_files_from_before_digests(runs):
    "Are read, and a configuration that was changed is noticed by its hash"
    for o in ('config.json', 'result.json'):
        data = json.loads((runs/'focus'/o).read_text())
        for k in ('digest', 'signed', 'weights'): data.pop(k, None)
        (runs/'focus'/o).write_text(json.dumps(data))
    assert run('digits', 'focusnet', 0, runs/'focus', **SMALL)['epochs'] == 2
    path = runs/'focus'/'config.json'
    path.write_text(path.read_text().replace('"alpha": 1.0', '"alpha": 0.5'))
    with pytest.raises(Damaged, match='its configuration does not fit its hash'): read_about(runs/'focus')


def test_damage_is_told_to_other_processes():
    "As an error that a run knows"
    e = pickle.loads(pickle.dumps(Damaged('runs/result.json', 'it is empty')))
    assert type(e) is RunError and str(e).startswith('runs/result.json is damaged (it is empty): remove this file')


def test_unreadable(tmp_path):
    (tmp_path/'result.json').mkdir()
    with pytest.raises(RunError, match=r'Cannot read .*result\.json: Is a directory'): read_result(tmp_path)


# -- packing ----------------------------------------------------------------------------------------------------------

def test_packed_run_counts_as_finished(packed, monkeypatch):
    "It is not run again; a method that needs its weights trains the baseline again, says so, and comes to the same"
    lines = []
    small = {**SMALL, 'log': lines.append}
    assert run_seeds('digits', 'focusnet', [0], packed, **small)[0] == read_pack(packed/'runs.jsonl')[1].result and lines == []
    assert sorted(o.name for o in packed.iterdir()) == ['logs.csv.gz', 'runs.jsonl']
    base = read_pack(packed/'runs.jsonl')[0]
    run_seeds('digits', 'kd', [0], packed, **small)
    assert lines[0].startswith(f'The baseline is packed in {packed}, without its weights: it is trained again, in {packed}/digits-baseline-0-')
    again = read_result(find_run(packed, base.config))
    assert again['last'] == base.result['last'] and again['weights'] == base.result['weights']
    assert len(results(packed)) == 3  # the baseline's folder counts before its packed line


def test_unpacked_and_packed_again(packed, tmp_path):
    "Byte for byte the same, and the same table"
    unpack_runs(packed, tmp_path/'out')
    a, b = [results(o).drop(columns='folder') for o in (packed, tmp_path/'out')]
    assert a.equals(b) and len(a) == 2
    pack_runs(tmp_path/'out', tmp_path/'again')
    for o in ('runs.jsonl', 'logs.csv.gz'): assert (tmp_path/'again'/o).read_bytes() == (packed/o).read_bytes()


def test_unfinished_stays_and_joins_later(runs):
    "Only finished runs are packed and removed, with whatever else lies in their folders left alone"
    (runs/'focus'/'result.json').rename(runs/'kept')
    (runs/'focus'/'notes.txt').write_text('mine')
    assert pack_runs(runs, remove=True) == 1
    assert (runs/'focus'/'weights.pth').exists() and len(list(runs.glob('*baseline-*'))) == 0
    (runs/'kept').rename(runs/'focus'/'result.json')
    assert pack_runs(runs, remove=True) == 2
    assert [o.name for o in (runs/'focus').iterdir()] == ['notes.txt'] and len(packed_logs(runs)) == 2


def test_nothing_to_pack(tmp_path):
    with pytest.raises(RunError, match='There is no finished run below'): pack_runs(tmp_path)


def test_damaged_pack_is_not_overwritten(packed, runs):
    "Nothing is lost by packing once more"
    (packed/'logs.csv.gz').write_bytes(b'')
    before = (packed/'runs.jsonl').read_bytes()
    with pytest.raises(Damaged, match='logs.csv.gz is damaged'): pack_runs(runs, packed, remove=True)
    assert (packed/'runs.jsonl').read_bytes() == before and (runs/'focus'/'weights.pth').exists()


def test_digest_is_of_the_content(tmp_path):
    write_signed(tmp_path/'config.json', dict(a=1.5, b=[None, True]))
    o = json.loads((tmp_path/'config.json').read_text())
    assert o.pop('signed') and o.pop('digest') == digest(dict(b=[None, True], a=1.5)) == digest(o)
