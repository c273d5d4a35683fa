"Runs in folders: killed for real at many moments and continued, full disks, two at a time, shared baselines, results and tables."
import json, os, random, re, shutil, signal, time
from pathlib import Path

import numpy as np, pandas as pd, pytest, torch
from PIL import Image
from fastai.vision.all import Callback, noop

from focusnet_fastai.record import RunError
from focusnet_fastai.lab.checkpoint import RunKeeper
from focusnet_fastai.lab.files import write_signed
from focusnet_fastai.lab.study import config_hash, read_about, read_result
from focusnet_fastai.lab.runs import Forecast, in_words, run, run_seeds
from focusnet_fastai.lab.config import find_run, run_config
from focusnet_fastai.lab.recipes import digits, poor_baseline
from focusnet_fastai.lab.paper import paper_tables, PaperTable, results
from focusnet_fastai.lab.table import table
from helpers.jobs import Jobs, KILL, SETTINGS

@pytest.fixture(scope='module')
def jobs(tmp_path_factory):
    jobs = Jobs(tmp_path_factory.mktemp('jobs'))
    yield jobs
    jobs.end()


@pytest.fixture(scope='module')
def photo_folder(tmp_path_factory):
    "Three kinds of noisy stripes"
    path, rng = tmp_path_factory.mktemp('photos'), np.random.RandomState(0)
    for split, n in (('train', 16), ('valid', 6)):
        for c in range(3):
            (path/split/f'kind{c}').mkdir(parents=True)
            for i in range(n):
                a = rng.randint(0, 160, (32, 36, 3)); a[::c+2, :, c] += 90
                Image.fromarray(a.astype(np.uint8)).save(path/split/f'kind{c}'/f'{i}.png')
    return str(path)


@pytest.fixture(scope='module')
def undisturbed(jobs, tmp_path_factory):
    "A run that nothing happens to, made once for the same arguments"
    done = {}
    def make(recipe, method, **job):
        key = json.dumps([recipe, method, job])
        if key not in done:
            folder = tmp_path_factory.mktemp('undisturbed')/'run'
            code, out = jobs.do(recipe, method, folder, **job)
            assert code == 0, out
            done[key] = folder
        return done[key]
    return make


def weights(folder): return torch.load(folder/'weights.pth', weights_only=True)
def log(folder): return pd.read_csv(folder/'log.csv').drop(columns='time')
def epochs_done(folder): return len(RunKeeper(folder).rows)
def files(folder): return sorted(o.name for o in folder.iterdir())
COSTS = ('seconds', 'images_per_second', 'peak_memory', 'commit')  # files may be edited while the tests run


def same(a, b):
    "Bit for bit the same, apart from times"
    for x, y in zip(*(sorted(o.parent.glob('*/config.json')) for o in (a, b))):
        x, y = x.parent, y.parent
        wx, wy = weights(x), weights(y)
        assert list(wx) == list(wy) and all(torch.equal(wx[k], wy[k]) for k in wx)
        assert log(x).equals(log(y)) and (x/'log.csv').read_text().count('\n') == (y/'log.csv').read_text().count('\n')
        rx, ry = [{k: v for k, v in read_result(o).items() if k not in COSTS} for o in (x, y)]
        assert rx == ry
        assert files(x) == files(y) == ['checkpoint.pth', 'config.json', 'lock', 'log.csv', 'result.json', 'weights.pth']
        assert read_about(x)['config'] == read_about(y)['config']
    assert len(list(a.parent.glob('*/config.json'))) == len(list(b.parent.glob('*/config.json')))


def in_batch(method, epoch, iter, train=True): return dict(method=method, epoch=epoch, train=train, iter=iter)
def opening(file, n=1): return dict(event='open', file=file, n=n)
def moving(file, n=1): return dict(event='move', file=file, n=n)
def at_line(line, do='kill'): return dict(line=line, do=do)


# -- kills ------------------------------------------------------------------------------------------------------------

def killed_again_and_again(jobs, folder, whens, recipe='digits', method='focusnet', **job):
    "Kill a run at each of `whens` (moment, signal, epochs that are then safe in the baseline's and in the run's folder), then let it end"
    for when, sig, base, own in whens:
        code, out = jobs.do(recipe, method, folder, when=when, **job)
        assert code == -sig, f'{when} did not kill it: {code}\n{out}'
        found = [o for o in folder.parent.glob('*baseline-*')]
        assert (epochs_done(found[0]) if found else 0, epochs_done(folder)) == (base, own), when
        assert not (folder/'result.json').exists()
    code, out = jobs.do(recipe, method, folder, **job)
    assert code == 0, out
    return out


TORN = signal.SIGXFSZ
MOMENTS = {
    'while training': [(in_batch('baseline', 0, 1), KILL, 0, 0),              # before there is any checkpoint
                       (in_batch('baseline', 1, 2), KILL, 1, 0),              # in the middle of the baseline's second epoch
                       (in_batch('baseline', 2, 5, False), KILL, 2, 0),       # while it is validated
                       (in_batch('method', 0, 0), KILL, 3, 0),                # before the first batch
                       (in_batch('method', 1, 1), KILL, 3, 1),
                       (in_batch('method', 2, 9, False), KILL, 3, 2)],
    'between epochs': [(at_line('epoch 1/3'), KILL, 1, 0), (at_line('epoch 2/3'), KILL, 2, 0), (at_line('epoch 3/3'), KILL, 3, 0),
                       (at_line('epoch 1/3'), KILL, 3, 1), (at_line('epoch 2/3'), KILL, 3, 2), (at_line('epoch 3/3'), KILL, 3, 3)],
    'while the first files are written': [(opening('config.json.tmp'), KILL, 0, 0), (moving('config.json'), KILL, 0, 0),
                       (moving('config.json', 2), KILL, 0, 0),                # the run's own, then its baseline's
                       (opening('checkpoint.pth.tmp'), KILL, 0, 0), (moving('checkpoint.pth'), KILL, 0, 0),
                       (moving('log.csv'), KILL, 1, 0)],                      # the checkpoint is there, the log is not
    'while later files are written': [(dict(line='epoch 1/3', do=dict(n=20_000, kill=True)), TORN, 1, 0),    # in the middle of the second checkpoint
                       (opening('log.csv.tmp', 2), KILL, 2, 0),               # between the second checkpoint and its line in the log
                       (moving('/weights.pth'), KILL, 3, 0), (moving('result.json'), KILL, 3, 0),
                       (opening('checkpoint.pth.tmp', 2), KILL, 3, 1),
                       (dict(line='epoch 2/3', do=dict(n=20_000, kill=True)), TORN, 3, 2),
                       (opening('log.csv.tmp', 2), KILL, 3, 3),               # the training has ended
                       (opening('weights.pth.tmp'), KILL, 3, 3), (opening('result.json.tmp'), KILL, 3, 3)],
}


@pytest.mark.slow
@pytest.mark.parametrize('moments', MOMENTS)
def test_killed_and_started_again(jobs, undisturbed, tmp_path, moments):
    "Weights and log are those of a run that nothing happened to, for FocusNet and for its baseline"
    whole = undisturbed('digits', 'focusnet', **SETTINGS)
    killed_again_and_again(jobs, tmp_path/'run', MOMENTS[moments], **SETTINGS)
    same(whole, tmp_path/'run')


OTHERS = {
    'random crops in memory': ('crops', 'focusnet', [(in_batch('baseline', 1, 3), KILL, 1, 0), (in_batch('method', 1, 4), KILL, 3, 1), (in_batch('method', 2, 0), KILL, 3, 2)]),
    'worker processes': ('photos', 'focusnet', [(in_batch('baseline', 1, 2), KILL, 1, 0), (in_batch('method', 1, 4), KILL, 3, 1), (in_batch('method', 1, 0, False), KILL, 3, 1)]),
    'another head (SLA)': ('digits', 'sla_sd', [(in_batch('method', 1, 1), KILL, 0, 1), (moving('checkpoint.pth'), KILL, 0, 1)]),
    'pairs of images (CS-KD)': ('digits', 'cs_kd', [(in_batch('method', 1, 2), KILL, 0, 1), (opening('log.csv.tmp', 2), KILL, 0, 2)]),
}


@pytest.mark.slow
@pytest.mark.parametrize('name', OTHERS)
def test_other_loaders_and_methods_killed(jobs, undisturbed, tmp_path, photo_folder, name):
    "Also where loaders draw crops, for whole batches or in processes of their own, and where a method trains more than the network"
    recipe, method, whens = OTHERS[name]
    args = dict(crops=dict(epochs=3), photos=dict(path=photo_folder, epochs=3), digits=SETTINGS)[recipe]
    whole = undisturbed(recipe, method, **args)
    killed_again_and_again(jobs, tmp_path/'run', whens, recipe, method, **args)
    same(whole, tmp_path/'run')


@pytest.mark.slow
def test_killed_at_random_times(jobs, undisturbed, tmp_path):
    "From outside, whatever the run is doing"
    whole = undisturbed('digits', 'focusnet', **SETTINGS)
    seconds = sum(read_result(o.parent)['seconds'] for o in whole.parent.glob('*/result.json'))
    rng, killed = random.Random(0), 0
    for _ in range(6):
        pid = jobs.start('digits', 'focusnet', tmp_path/'run', **SETTINGS)
        time.sleep(rng.uniform(.2, .7)*seconds)
        os.kill(pid, signal.SIGKILL)  # it is a zombie if it has ended: the server has not waited for it
        code, out = jobs.wait(pid)
        assert code in (0, -KILL), out
        if code == 0: break
        killed += 1
    assert killed
    code, out = jobs.do('digits', 'focusnet', tmp_path/'run', **SETTINGS)
    assert code == 0, out
    same(whole, tmp_path/'run')


# -- disks and folders ------------------------------------------------------------------------------------------------

@pytest.mark.slow
def test_full_disk_and_folder_that_became_read_only(jobs, undisturbed, tmp_path):
    "A clear error; what was there is kept, and the run goes on from it"
    whole, folder = undisturbed('digits', 'baseline', **SETTINGS), tmp_path/'run'
    code, out = jobs.do('digits', 'baseline', folder, when=at_line('epoch 1/3', dict(n=20_000, kill=False)), **SETTINGS)
    last = out.splitlines()[-1]
    assert code == 3 and last == f'RunError: Cannot write {folder}/checkpoint.pth: File too large. What was saved before is kept: the same call continues from there', out
    assert 'Traceback' not in out and epochs_done(folder) == 1 and files(folder) == ['checkpoint.pth', 'config.json', 'lock', 'log.csv']
    before = (folder/'checkpoint.pth').read_bytes()
    folder.chmod(0o555)
    try: code, out = jobs.do('digits', 'baseline', folder, obey=True, **SETTINGS)
    finally: folder.chmod(0o755)
    assert code == 3 and re.search(rf'RunError: Cannot write {folder}/\S+: Permission denied', out), out
    assert (folder/'checkpoint.pth').read_bytes() == before and files(folder) == ['checkpoint.pth', 'config.json', 'lock', 'log.csv']
    code, out = jobs.do('digits', 'baseline', folder, **SETTINGS)
    assert code == 0 and 'epochs 2 to 3 epochs' in out, out
    same(whole, folder)


@pytest.mark.slow
def test_unwritable_place(jobs, tmp_path):
    "Named before anything is trained"
    (tmp_path/'theirs').mkdir(mode=0o555)
    code, out = jobs.do('digits', 'focusnet', tmp_path/'theirs'/'run', obey=True, **SETTINGS)
    assert code == 3 and out.strip() == f"RunError: Cannot write in the folder {tmp_path}/theirs/run: Permission denied"
    (tmp_path/'file').write_text('')
    with pytest.raises(RunError, match='Cannot write in the folder .*file/run: Not a directory'): run('digits', 'focusnet', 0, tmp_path/'file'/'run', **SETTINGS)


@pytest.mark.slow
def test_disk_without_space(jobs, undisturbed, tmp_path):
    "A small file system fills up; when it has grown, the run goes on"
    whole, disk = undisturbed('digits', 'baseline', **SETTINGS), tmp_path/'disk'
    disk.mkdir()
    code, out = jobs.do('digits', 'baseline', disk/'run', disk=dict(path=str(disk), size='800k'), **SETTINGS)
    if code == 77: pytest.skip('mounting a small file system is not allowed here')
    assert code == 0 and f'RunError: Cannot write {disk}/run/checkpoint.pth: No space left on device' in out, out
    assert 'epochs 2 to 3 epochs' in out
    same(whole, tmp_path/'disk-copy'/'run')


def test_damaged_checkpoint(undisturbed, tmp_path):
    "A disk may lose what it has: the file is named"
    folder = tmp_path/'run'
    shutil.copytree(undisturbed('digits', 'baseline', **SETTINGS), folder)
    for o in ('result.json', 'weights.pth'): (folder/o).unlink()
    whole = (folder/'checkpoint.pth').read_bytes()
    for data in (b'', whole[:1000], whole[:-1000]):
        (folder/'checkpoint.pth').write_bytes(data)
        with pytest.raises(RunError, match='checkpoint.pth is damaged .*: remove it'): run('digits', 'baseline', 0, folder, log=noop, **SETTINGS)
    (folder/'checkpoint.pth').write_bytes(whole)
    assert run('digits', 'baseline', 0, folder, log=noop, **SETTINGS)['epochs'] == 3


# -- several runs -----------------------------------------------------------------------------------------------------

def until(f, seconds=120):
    end = time.time() + seconds
    while not f():
        assert time.time() < end, 'it did not happen'
        time.sleep(.05)


def state(pid): return Path(f'/proc/{pid}/stat').read_text().rsplit(')', 1)[1].split()[0]


@pytest.mark.slow
def test_two_runs_in_one_folder_and_a_shared_baseline(jobs, undisturbed, tmp_path):
    "The second in a folder is refused; another one waits for the baseline that both need, and takes it; the lock ends with its process"
    a = jobs.start('digits', 'focusnet', tmp_path/'a', when=at_line('epoch 1/3', 'stop'), **SETTINGS)
    until(lambda: state(a) == 'T')
    code, out = jobs.do('digits', 'focusnet', tmp_path/'a', **SETTINGS)
    assert code == 3 and out.strip() == f'RunError: Another run (process {a}) is at work in {tmp_path}/a: wait for it, or choose another folder'
    b = jobs.start('digits', 'kd', tmp_path/'b', T=3., **SETTINGS)
    until(lambda: f'waiting for another run (process {a})' in jobs.outs[b].read_text())
    os.kill(a, signal.SIGCONT)
    (code_a, out_a), (code_b, out_b) = jobs.wait(a), jobs.wait(b)
    assert code_a == code_b == 0, out_a + out_b
    assert out_a.count('digits baseline seed 0') == 1 and 'digits baseline' not in out_b
    assert [o[:18] for o in files(tmp_path)] == ['a', 'b', 'digits-baseline-0-']
    w, v = weights(undisturbed('digits', 'focusnet', **SETTINGS)), weights(tmp_path/'a')
    assert all(torch.equal(w[k], v[k]) for k in w)


@pytest.mark.slow
def test_a_row_and_the_baseline_of_another_are_one_run(tmp_path):
    "What trains the baseline first does it in the folder where the other looks for it: two processes at once meet at its lock"
    assert [run_seeds('digits', 'focusnet', [0], tmp_path/'a', log=noop, n_train=64, epochs=1)] and len(files(tmp_path/'a')) == 2
    lines = []
    run_seeds('digits', 'baseline', [0], tmp_path/'a', log=lines.append, n_train=64, epochs=1)
    assert not any('epochs in' in o for o in lines) and len(files(tmp_path/'a')) == 2
    run_seeds('digits', 'baseline', [0], tmp_path/'b', log=noop, n_train=64, epochs=1)
    assert set(files(tmp_path/'b')) <= set(files(tmp_path/'a'))


@pytest.mark.slow
def test_baseline_with_other_settings(jobs, undisturbed, tmp_path):
    "A baseline is found by its settings, in whatever folder; one that was made as a run of its own too"
    whole = undisturbed('digits', 'baseline', **SETTINGS)
    shutil.copytree(whole, tmp_path/'mine')
    lines = []
    run('digits', 'tf_kd', 0, tmp_path/'run', log=lines.append, **{**SETTINGS, 'epochs': 1}, base=dict(epochs=3))
    assert files(tmp_path) == ['mine', 'run'] and not any('digits baseline' in o for o in lines)
    run('digits', 'tf_kd', 0, tmp_path/'run2', log=lines.append, **{**SETTINGS, 'epochs': 1}, base=dict(seed=5))
    made = list(tmp_path.glob('*baseline-*'))
    assert len(made) == 1 and read_about(made[0])['config']['recipe_settings'] == dict(n_train=200, seed=5, net='lenet5', epochs=1, lr=.02, mom=.9, wd=1e-4, bs=64)


@pytest.mark.slow
def test_finished_is_not_run_again(undisturbed):
    folder = undisturbed('digits', 'focusnet', **SETTINGS)
    times, lines = {o: o.stat().st_mtime_ns for o in folder.parent.rglob('*.*')}, []
    assert run('digits', 'focusnet', 0, folder, log=lines.append, **SETTINGS) == read_result(folder)
    assert lines == [] and times == {o: o.stat().st_mtime_ns for o in folder.parent.rglob('*.*')}


@pytest.mark.parametrize('change, message', [(dict(epochs=4), 'epochs is 3 there, 4 now; baseline.epochs is 3 there, 4 now'), (dict(alpha=.5), 'alpha is 1.0 there, 0.5 now'),
                                             (dict(base=dict(epochs=2)), 'baseline.epochs is 3 there, 2 now'), (dict(lr=.1, base=dict(lr=.02)), 'lr is 0.02 there, 0.1 now')])
def test_other_settings_are_refused(undisturbed, change, message):
    folder = undisturbed('digits', 'focusnet', **SETTINGS)
    with pytest.raises(RunError) as e: run('digits', 'focusnet', 0, folder, log=noop, **{**SETTINGS, **change})
    assert str(e.value) == f'{folder} holds a run with other settings ({message}): choose another folder'
    with pytest.raises(RunError, match='seed is 0 there, 1 now'): run('digits', 'focusnet', 1, folder, log=noop, **SETTINGS)
    with pytest.raises(RunError, match="method is 'focusnet' there, 'focal' now"): run('digits', 'focal', 0, folder, log=noop, **SETTINGS)


def test_wrong_names():
    for args, kwargs, message in ((('digit', 'focusnet'), {}, "Unknown recipe 'digit': choose from mnist"), (('digits', 'focus'), {}, "Unknown method 'focus': choose from baseline"),
                                  (('digits', 'focusnet'), dict(epoch=1), "no setting 'epoch'; digits has bs"), (('digits', 'baseline'), dict(base=dict(epochs=1)), 'needs no baseline'), (('digits', 'focusnet'), dict(epochs=0), '`epochs` must be a positive whole number'),
                                  (('digits', 'focusnet'), dict(base=dict(epochs=-1)), '`epochs` must be'),
                                  (('digits', 'focusnet'), dict(net=object()), "'net' must be made of numbers"), (('digits', 'focusnet'), dict(base=dict(alpha=1)), "no setting 'alpha'")):
        with pytest.raises(ValueError, match=message): run_config(*args, **kwargs)


def test_settings_are_refused_before_the_baseline_is_trained(tmp_path):
    for method, given, error, message in (('focusnet', dict(alpha=-1.), ValueError, '`alpha` must lie in'), ('kd', dict(T='2'), TypeError, "`T` must be a number, but is '2'"),
                                          ('focusnet', dict(base=dict(method='byot', feature=-1.)), ValueError, '`feature` must lie in')):
        with pytest.raises(error, match=message): run('digits', method, 0, tmp_path/'run', log=noop, n_train=64, epochs=1, **given)
    assert not list(tmp_path.rglob('checkpoint.pth'))


# -- what is left -----------------------------------------------------------------------------------------------------

def test_result(undisturbed, jobs):
    "Checked against the weights and the log"
    folder = undisturbed('digits', 'focusnet', **SETTINGS)
    res, cfg = read_result(folder), run_config('digits', 'focusnet', 0, **SETTINGS)
    base = find_run(folder.parent, cfg['baseline'])
    rows = pd.read_csv(folder/'log.csv')
    assert list(rows) == ['epoch', 'train_loss', 'valid_loss', 'accuracy', 'top_5', 'cls', 'attention', 'entropy', 'time'] and list(rows.epoch) == [0, 1, 2]
    assert np.allclose(rows.cls + rows.attention - rows.entropy, rows.train_loss, atol=1e-4)
    last, best = rows.iloc[-1], rows.iloc[rows.accuracy.argmax()]
    for k in ('train_loss', 'valid_loss', 'accuracy', 'top_5', 'cls', 'attention', 'entropy'): assert res['last'][k] == pytest.approx(last[k]) and res['best'][k] == pytest.approx(best[k])
    assert res['best']['epoch'] == rows.accuracy.argmax() and res['last']['epoch'] == 2 and res['epochs'] == 3
    hits, t = [], digits(**SETTINGS)
    x, y = t.learn.dls.valid.new(bs=797).one_batch()
    for o in (base, folder):
        t.learn.model.load_state_dict(weights(o))
        z = t.learn.model.eval()(x)
        hits.append(z.argmax(1) == y)
    assert [res['baseline']['accuracy'], res['last']['accuracy']] == pytest.approx([o.float().mean().item() for o in hits])
    assert (res['fixed'], res['broken']) == ((hits[1] & ~hits[0]).sum(), (hits[0] & ~hits[1]).sum())
    from scipy.stats import binomtest
    assert res['p'] == pytest.approx(binomtest(res['fixed'], res['fixed'] + res['broken']).pvalue)
    from focusnet_fastai.probabilities import probability_quality
    want = probability_quality(t.learn.model.eval()(x).detach(), y)  # raw, and after one temperature; what could not be measured is None
    assert {k: res[k] for k in want} == {k: None if v != v else pytest.approx(v, rel=1e-3, abs=1e-4) for k, v in want.items()} and set(want) < set(res['baseline'])
    assert 0 <= res['ece'] <= 1 and res['hash'] == config_hash(cfg) == read_about(folder)['hash']
    assert read_about(folder)['config'] == cfg
    assert (res['recipe'], res['method'], res['seed']) == ('digits', 'focusnet', 0) and res['peak_memory_of'] == 'process' and 5e7 < res['peak_memory'] < 1e11
    assert res['seconds'] == pytest.approx(rows.time.sum()) and 200*3/res['images_per_second'] <= res['seconds']*1.1
    assert torch.__version__.startswith(res['versions']['torch']) and set(res['versions']) == {'focusnet_fastai', 'fastai', 'torch', 'torchvision', 'numpy', 'python'} and res['device'].startswith('cpu: ')
    assert res['commit'] is None or re.fullmatch(r'[0-9a-f]{40}(\+changes)?', res['commit'])


def test_progress_lines(jobs, tmp_path):
    "One line an epoch where there is no terminal"
    code, out = jobs.do('digits', 'focal', tmp_path/'run', **{**SETTINGS, 'epochs': 2})
    lines = out.splitlines()
    assert code == 0 and len(lines) == 3 and lines[0] == f'digits focal seed 0: 2 epochs in {tmp_path}/run'
    for i in (1, 2): assert re.match(rf'epoch {i}/2  train_loss -?\d+\.\d{{4}}  valid_loss .*  accuracy 0\.\d{{4}}  top_5 .* s$', lines[i])


def own(seed=0, epochs=1, lr=.02):
    "A recipe of one's own"
    return digits(200, seed, epochs=epochs, lr=lr)


@pytest.mark.slow
def test_own_recipe_and_seeds(tmp_path):
    "A function is a recipe; the same seed gives the same numbers, another one others; a second call trains nothing"
    first, second = [run_seeds(own, 'focusnet', range(2), tmp_path/o, log=noop, lr=.03) for o in ('a', 'b')]
    assert [o['last'] for o in first] == [o['last'] for o in second] and first[0]['last'] != first[1]['last']
    names = files(tmp_path/'a')
    assert len(names) == 4 and all(re.fullmatch(r'own-(baseline|focusnet)-[01]-[0-9a-f]{10}', o) for o in names)
    assert run_seeds(own, 'focusnet', range(2), tmp_path/'a', log=noop, lr=.03) == first and files(tmp_path/'a') == names
    df = results(tmp_path)
    assert len(df) == 8 and set(df.method) == {'baseline', 'focusnet'} and df.finished.all()
    assert df[df.method == 'focusnet'].total_epochs.eq(2).all() and df[df.method == 'baseline'].total_epochs.eq(1).all() and df.lr.eq(.03).all()
    assert (df.groupby(['method', 'seed']).accuracy.nunique() == 1).all()
    with pytest.raises(TypeError, match='The recipe wrong must return a Training, not Learner'):
        def wrong(): return own().learn
        run(wrong, 'baseline', 0, tmp_path/'wrong', log=noop)


def test_results_of_unfinished_runs(jobs, undisturbed, tmp_path):
    code, _ = jobs.do('digits', 'baseline', tmp_path/'deep'/'run', when=at_line('epoch 1/3'), **SETTINGS)
    shutil.copytree(undisturbed('digits', 'focusnet', **SETTINGS).parent, tmp_path/'done')
    df = results(tmp_path).set_index(['finished', 'method'])
    assert set(df.index) == {(False, 'baseline'), (True, 'baseline'), (True, 'focusnet')}
    assert df.epochs[False, 'baseline'] == 1 and np.isnan(df.accuracy[False, 'baseline']) and df.total_epochs[True, 'focusnet'] == 6
    assert results(tmp_path/'nowhere').empty


# -- tables -----------------------------------------------------------------------------------------------------------

@pytest.fixture()
def record(undisturbed, tmp_path):
    "Puts a finished run with given accuracies into a folder, in the form that a real run left"
    form = read_result(undisturbed('digits', 'focusnet', **SETTINGS))
    def put(recipe, method, seed, last, best, top_5=.99, **config):
        cfg = run_config(recipe, method, seed, **config)
        folder = tmp_path/'runs'/f'{recipe}-{method}-{seed}-{config_hash(cfg)}'
        folder.mkdir(parents=True)
        write_signed(folder/'config.json', dict(config=cfg, hash=config_hash(cfg)))
        epochs = {k: {**form[k], 'accuracy': v, 'top_5': top_5} for k, v in dict(last=last, best=best).items()}
        write_signed(folder/'result.json', {**form, 'hash': config_hash(cfg), **epochs})
        return folder
    return put


def cells(t, row): return {k: t.df.loc[(row, k)].to_dict() for k in ('paper', 'ours', 'difference', 'best epoch')}


def test_table(record, tmp_path):
    "The paper's number, mean, deviation, number of seeds and difference; runs with other settings do not count, nor does a copy twice"
    for s, (a, b) in enumerate([(.94, .945), (.95, .955), (.96, .965)]): record('cifar10', 'focusnet', s, a, b)
    record('cub200', 'baseline', 0, .5129, .52)
    record('cub200', 'focusnet', 0, .1, .1, epochs=5)
    record('cifar10', 'focusnet', 7, .2, .2, beta=.5)
    shutil.copytree(record('cub200', 'focusnet', 1, .6, .61), tmp_path/'runs'/'copy')
    t = table(2, tmp_path/'runs')
    c = cells(t, 'FocusNet (Ours)')
    assert c['paper']['CIFAR-10'] == '94.86' and c['ours']['CIFAR-10'] == '95.00 ± 1.00 (3)' and c['difference']['CIFAR-10'] == '+0.14' and c['best epoch']['CIFAR-10'] == '95.50 ± 1.00 (3)'
    assert c['ours']['CUB-200'] == '60.00 (1)' and c['difference']['CUB-200'] == '-3.43'
    assert cells(t, 'Baseline')['ours']['CUB-200'] == '51.29 (1)' and cells(t, 'Baseline')['difference']['CUB-200'] == '+1.00'
    filled = [(r, c) for r in ('Baseline', 'DropMax', 'FocusNet (Ours)') for c in t.df.columns if t.df.loc[(r, 'ours'), c]]
    assert filled == [('Baseline', 'CUB-200'), ('FocusNet (Ours)', 'CIFAR-10'), ('FocusNet (Ours)', 'CUB-200')]
    assert cells(table(2, tmp_path/'runs', epochs=5), 'FocusNet (Ours)')['ours'] == {**dict.fromkeys(t.df.columns, ''), 'CUB-200': '10.00 (1)'}
    assert cells(table(10, tmp_path/'runs'), 'FocusNet (Ours)')['ours']['CUB-200'] == cells(table(7, tmp_path/'runs'), 'FocusNet (Ours)')['ours']['CUB-200'] == '60.00 (1)'


def test_table_asks_for_networks_and_baselines(record, tmp_path):
    "Each row its own network, baseline, method settings and metric"
    record('imagenet', 'focusnet', 0, .7, .7, top_5=.9, net='resnet34', path=None)
    record('cifar100', 'kd', 0, .71, .72, net='mobilenet_v2', base=dict(net='resnet18'))
    record('cifar100', 'kd', 0, .5, .5)
    record('cifar10', 'focusnet', 0, .93, .94, base=poor_baseline('cifar10'))
    record('cifar10', 'baseline', 0, .40, .41, **poor_baseline('cifar10'))
    record('cub200', 'focusnet', 0, .58, .59, alpha=0., beta=0.)
    record('cub200', 'focusnet', 0, .61, .62, alpha=0.)
    ours = lambda n, row: {k: v for k, v in table(n, tmp_path/'runs').df.loc[(row, 'ours')].items() if v}
    assert ours(3, 'ResNet-34 FocusNet (Ours)') == {'Top-1': '70.00 (1)', 'Top-5': '90.00 (1)'} and not ours(3, 'ResNet-18 FocusNet (Ours)')
    assert ours(5, 'Standard KD') == {'CIFAR-100': '71.00 (1)'}
    assert ours(9, 'FocusNet (Ours)') == {'CIFAR-10': '93.00 (1)'} and ours(9, 'T: Pt-MobileNetV2') == {'CIFAR-10': '40.00 (1)'} and not ours(2, 'FocusNet (Ours)')
    record('cub200', 'cs_kd', 0, .63, .64, lam=3.)
    record('cifar100', 'cs_kd', 0, .77, .78)
    assert ours(7, 'CS-KD') == {'CIFAR-100': '77.00 (1)', 'CUB-200': '63.00 (1)'}
    assert ours(10, 'L_cls') == {'CUB-200': '58.00 (1)'} and ours(10, 'L_cls + R_entropy') == {'CUB-200': '61.00 (1)'} and not ours(10, 'L_cls + R_attention')


@pytest.mark.slow
def test_tables_as_text(tmp_path):
    "Every table can be printed with nothing run, as Markdown and as HTML"
    for n, paper in paper_tables.items():
        t = table(n, tmp_path/'nothing')
        lines = t.markdown.splitlines()
        head = next(i for i, o in enumerate(lines) if o.startswith('| ---'))
        assert lines[0].startswith(f'**Table {n}. ') and {o.count('|') - o.count('\\|') for o in lines[head-1:head+1+len(t.df)]} == {len(t.df.columns) + 3}
        for (nums, _), label in zip(paper.rows.values(), paper.rows): assert [float(o) for o in t.df.loc[(label, 'paper')]] == nums
        if n not in (4, 6): assert (t.df.loc[(slice(None), 'ours'), :] == '').all().all()
        assert t._repr_html_().count('<tr') == len(t.df) + 1 and repr(t) == t.markdown and not re.search(r'<td>nan|<td>None', t.html)
    assert paper_tables[7].rows['FRSKD'][0] == [77.71, 65.39, 70.77, 64.35, 74.31] and paper_tables[2].rows['DropMax'][0][2] == 86.87 and paper_tables[9].rows['De-reverse KD'][0][-1] == 39.39
    with pytest.raises(ValueError, match='no table 1: choose from 2, 3, 4'): table(1, tmp_path)
    with pytest.raises(ValueError, match='has the setting epoch$'): table(2, tmp_path, epoch=5)
    with pytest.raises(ValueError, match='the row A has 1 numbers for 2 columns'): PaperTable('x', [('a', 'digits', 'accuracy')]*2, {'A': ('1.0', None)})


def test_tables_of_complexity(tmp_path):
    "Tables 4 and 6: what the paper counts is counted again, and what is deployed and trained stands beside it"
    t = table(6, tmp_path)
    rows = {k: t.df.loc[k].tolist() for k in t.df.index}
    assert list(t.df.columns) == ['Baseline', 'DDGSD', 'CS-KD', 'SLA-SD', 'Tf-KD', 'ONE', 'BYOT', 'FRSKD', 'FocusNet (Ours)']
    assert rows['Params (M)', 'paper'] == rows['Params (M)', 'ours'] == ['11.27', '11.27', '11.27', '11.58', '11.27', '11.27', '12.49', '17.75', '11.27']
    assert rows['Params (M)', 'training'] == ['11.27', '11.27', '11.27', '11.68', '11.27', '28.26', '13.01', '17.75', '11.27']
    assert rows['FLOPs (G)', 'ours'] == ['4.44']*6 + ['4.66', '7.58', '4.44'] and all(abs(float(o)) < .041 for o in rows['FLOPs (G)', 'difference'])
    assert rows['FLOPs (G)', 'training'] == ['4.44', '8.89', '8.89', '17.78', '8.89', '6.59', '4.66', '7.58', '8.89']
    assert set(rows['Params (M)', 'deployed']) == {'11.27'} and set(rows['FLOPs (G)', 'deployed']) == {'4.44'}
    assert "'ours' counts the same" in t.markdown and 'adapters' in t.markdown
    u = table(4, tmp_path)
    assert u.df.loc[('Params (M)', 'ours')].tolist() == ['0.94', '11.27', '21.38'] and u.df.loc[('FLOPs (G)', 'ours')].tolist() == ['0.02', '4.44', '9.28'] and 'standard strides' in u.note


def test_table_that_finds_nothing(record, tmp_path):
    "Says which settings the runs there have, and how to ask for them; or that there are none for it"
    hint = lambda n, **kw: table(n, tmp_path/'runs', **kw).hint
    assert hint(2) == f"There is no finished run below {tmp_path}/runs. Start some with focusnet-run, or say where they are."
    record('digits', 'focusnet', 0, .9, .9)
    assert hint(2) == f"No run below {tmp_path}/runs belongs into this table. There are: digits focusnet (1)."
    for s in range(3): record('cifar10', 'focusnet', s, .9, .9, epochs=5, n_train=2000)
    record('cifar10', 'baseline', 0, .9, .9, net='small_cnn')
    assert '--set epochs=5 n_train=2000 (3 runs) or --set net=small_cnn (1 runs)' in hint(2) and hint(2) in table(2, tmp_path/'runs').markdown and hint(2) in table(2, tmp_path/'runs').html
    assert hint(2, epochs=5, n_train=2000) == '' and hint(4) == ''


def test_table_is_aligned(record, tmp_path):
    "In a terminal columns stand below each other, in a browser the table has a style"
    record('cifar10', 'focusnet', 0, .9, .9)
    t = table(2, tmp_path/'runs')
    lines = [o for o in repr(t).splitlines() if o.startswith('|')]
    assert len({len(o) for o in lines}) == 1 and len({tuple(i for i, c in enumerate(o) if c == '|') for o in lines}) == 1
    assert '<style>' in t.html and 'class="dataframe paper-table"' in t.html


class Slow(Callback):
    "Three minutes a batch, on a clock that a test can turn"
    order, run_valid, now = 8_000, False, 0.
    def after_batch(self): Slow.now += 180


@pytest.mark.slow
def test_forecast(monkeypatch, tmp_path):
    "After the first batches of a long training, once; a short one says nothing"
    monkeypatch.setattr(time, 'perf_counter', lambda: Slow.now)
    t = digits(n_train=200, epochs=4)
    told = []
    with t.learn.no_bar(), t.learn.no_logging(): t.fit(cbs=[Slow(), Forecast(told.append)])
    assert told == [f'about {in_words(4*3*180*(1+797/200/3))} for 4 epochs, going by the first 2 batches']
    with t.learn.no_bar(), t.learn.no_logging(): t.fit(cbs=[Slow(), Forecast(told.append, least=1e9)])
    assert len(told) == 1
    assert [in_words(o) for o in (5, 60, 200, 3600, 7500)] == ['5 seconds', '1 minute', '3 minutes', '1 h 0 min', '2 h 5 min']


@pytest.mark.slow
@pytest.mark.parametrize('n, rows, columns', [(2, 3, 8), (3, 4, 2), (5, 4, 7), (7, 11, 5), (8, 6, 2), (9, 4, 7), (10, 5, 2)])
def test_every_row_of_every_table_can_be_run(n, rows, columns):
    "Each cell asks for a configuration, and no two cells of a table for the same one"
    t = paper_tables[n]
    assert (len(t.rows), len(t.columns)) == (rows, columns)
    asked = [(metric, config_hash(run_config(recipe, seed=0, **what(recipe)))) for _, what in t.rows.values() for _, recipe, metric in t.columns]
    assert len(set(asked)) == rows*columns
