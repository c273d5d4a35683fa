"Two real processes that train together, over Gloo on the CPU"
import json, os, signal, time
from pathlib import Path
from textwrap import dedent

import pytest, torch
from torch import nn
from fastai.vision.all import Learner, num_distrib
from focusnet_fastai.data.digits import digits_dls
from focusnet_fastai.lab.distributed import left_plain, alone, by_all, by_first, on_all_devices, split_batches
from focusnet_fastai.lab.study import read_result
from helpers import fresh
from helpers.two_processes import command, env, forked, in_two_processes, launch, on_two_machines, started


# --- in one process ---------------------------------------------------------------------------------------------------------

def test_one_process_is_left_alone():
    "Nothing is wrapped, sent or changed where there is only one process"
    learn = Learner(digits_dls(n_train=64), nn.Sequential(nn.Flatten(), nn.Linear(1024, 10)))
    before, dls = list(learn.cbs), learn.dls
    with on_all_devices(learn): assert list(learn.cbs) == before
    assert split_batches(dls) is dls and by_first(max, 1, 2) == 2 and by_all(max, 1, 2) == 2
    assert not torch.distributed.is_initialized()


@pytest.mark.slow
def test_nothing_is_patched_by_importing():
    code = '''
import inspect
pytest = None
from focusnet_fastai.lab import distributed, runs as experiment
import sys; assert 'accelerate' not in sys.modules and 'fastai.distributed' not in sys.modules
from fastai.distributed import DistributedDL
old = DistributedDL._broadcast
assert 'cuda' in inspect.getsource(old)
try:
    with distributed.cpu_broadcast():
        assert DistributedDL._broadcast is not old
        1/0
except ZeroDivisionError: pass
assert DistributedDL._broadcast is old
'''
    pytest.importorskip('accelerate')
    out = fresh.python(code)
    assert out.returncode == 0, out.stderr


def test_alone(monkeypatch):
    monkeypatch.setenv('WORLD_SIZE', '4'); monkeypatch.setenv('RANK', '3')
    with pytest.raises(KeyError):
        with alone():
            assert num_distrib() == 0 and 'RANK' not in os.environ
            raise KeyError
    assert os.environ['WORLD_SIZE'] == '4' and os.environ['RANK'] == '3'


def test_batches_are_divided(monkeypatch):
    dls = digits_dls(n_train=128, bs=64)
    monkeypatch.setenv('WORLD_SIZE', '4')
    new = split_batches(dls)
    assert (new.train.bs, new.valid.bs, dls.train.bs) == (16, 64, 64) and new.train.shuffle and new.train.drop_last
    monkeypatch.setenv('WORLD_SIZE', '5')
    with pytest.raises(ValueError, match='64 images cannot be divided among 5 processes'): split_batches(dls)


def test_synchronised_batch_norm_does_not_stay():
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Sequential(nn.BatchNorm2d(4, affine=False)), nn.Flatten(), nn.Linear(4*30*30, 10))
    learn = Learner(digits_dls(n_train=64), net)
    norms, params = (net[1], net[2][0]), list(net.parameters())
    with left_plain(learn):
        nn.SyncBatchNorm.convert_sync_batchnorm(net)
        assert type(net[1]) is nn.SyncBatchNorm
        net[1]._buffers['running_var'] = torch.full((4,), 7.)
        net.eval()
    assert (net[1], net[2][0]) == norms and all(p is q for p, q in zip(net.parameters(), params))
    assert net[1].running_var.tolist() == [7.]*4 and not net[1].training
    learn.validate()


# --- in two processes -----------------------------------------------------------------------------------------------------

TRAIN = '''
report = {}
same = same_in_both
def flat(net): return torch.cat([p.detach().float().flatten() for p in net.state_dict().values()])
def fit(learn, n, cbs=None, lr=3e-3):
    with on_all_devices(learn), learn.no_bar(), learn.no_logging(): learn.fit(n, lr, cbs=cbs)
    return learn
def recorded(ds):
    "Positions in `ds` that are read from now on, batch by batch"
    seen,old = [],ds.batch
    def batch(idxs):
        seen.append([int(i) for i in idxs])
        return old(idxs)
    ds.batch = batch
    return seen

connect()
report['world'] = [num_distrib(), dist.get_world_size(), dist.get_backend()]

# a baseline and a FocusNet; each process begins with another network and another baseline, and the first one's count
set_seed(rank)
dls = digits_dls(n_train=201, bs=16, drop_last=False)
base = fit(Learner(dls, lenet5(10), metrics=accuracy), 2)
report['base equal'] = same(flat(base.model))
if rank:
    with torch.no_grad(): next(base.model.parameters()).add_(1.)
report['base differs'] = not same(flat(base.model))
class Look(Callback):
    run_valid,order = False,1
    def before_fit(self): self.learn.looks,self.learn.draws = [],[]
    def after_pred(self):
        m = self.learn.focus_net
        if not self.looks: self.learn.frozen = flat(m.frozen)
        self.learn.looks.append(isinstance(self.learn.model, DDP) and type(m.frozen) is FrozenNetwork and not any(isinstance(o, DDP) for o in m.frozen.modules()))
        self.learn.draws.append(torch.rand(1).item())
seen = recorded(dls.train_ds)
learn = fit(Learner(dls, lenet5(10), metrics=accuracy), 2, [FocusNetCallback(base), Look()])
report['looks'] = [len(learn.looks), all(learn.looks)]
report['frozen equal'] = same(learn.frozen)
report['weights equal'] = same(flat(learn.model))
report['random numbers differ'] = gathered(learn.draws)[0]!=gathered(learn.draws)[1]
report['plain again'] = [type(learn.model).__name__, type(learn.dls.train).__name__, 'cuda' in inspect.getsource(DistributedDL._broadcast), len(learn.cbs)==len(base.cbs)]
report['finite'] = bool(flat(learn.model).isfinite().all())

# each image once an epoch, apart from one that is repeated: 201 = 2*101 - 1
a,b = gathered([seen[:7], seen[7:]])
for e in range(2):
    both = [i for o in (a[e],b[e]) for batch in o for i in batch]
    report[f'epoch {e}'] = [len(both), len(set(both)), sorted(map(len, a[e]))==sorted(map(len, b[e]))]
report['orders differ'] = a[0]!=a[1]
report['validation'] = [list(learn.recorder.values[-1][1:3]), by_first(lambda: list(learn.validate()))]

# pairs of CS-KD: the first halves of the batches are the epoch
dls = digits_dls(n_train=96, bs=16)
learn2,seen = CSKD.wrap(Learner(dls, lenet5(10))),recorded(dls.train_ds)
fit(learn2, 1)
a,b = gathered(seen)
halves = [o[:len(o)//2] for o in a+b]
labels = dls.train_ds.y.tolist()
report['pairs'] = [len(a), len(b), sorted(i for o in halves for i in o)==list(range(96)), all([labels[i] for i in o[:16]]==[labels[i] for i in o[16:]] for o in a+b)]
report['pairs weights'] = same(flat(learn2.model))

# a loader that reads items in worker processes
items = DataLoaders(TfmdDL(list(range(101)), bs=8, shuffle=True, num_workers=1))
with cpu_broadcast(): got = [i for o in DistributedDL(items.train) for i in o.tolist()]
a,b = gathered(got)
report['items'] = [len(a), len(b), sorted(set(a+b))==list(range(101))]

# gradients are averaged: two times 16 images are 32
def fixed_batches(bs, order=None):
    dls = digits_dls(n_train=128, bs=bs, shuffle=False)
    return dls if order is None else DataLoaders(dls.train.new(get_idxs=lambda: order), dls.valid)
def network():
    set_seed(1)
    return lenet5(10)
start = flat(network())
two = fit(Learner(fixed_batches(16), network(), opt_func=SGD), 3, FocusNetCallback(Baseline(base.model)), .02)
def by_one():
    order = [i for k in range(0, 64, 16) for o in (0, 64) for i in range(o+k, o+k+16)]
    one = Learner(fixed_batches(32, order), network(), opt_func=SGD)
    with one.no_bar(), one.no_logging(): one.fit(3, .02, cbs=FocusNetCallback(Baseline(base.model)))
    return flat(one.model)
one = by_first(by_one)
report['difference'] = [(flat(two.model)-one).abs().max().item(), (one-start).abs().max().item()]

# weighted sampling: image 3 is drawn as often as its weight says, in both processes together
few = DataLoaders(WeightedDL(list(range(40)), bs=8, shuffle=True, wgts=[1]*20+[9]*20), digits_dls(n_train=20).valid)
loader = split_batches(few).train
with cpu_broadcast(): drawn = [int(i) for _ in range(20) for b in DistributedDL(loader) for i in b]
a,b = gathered(drawn)
report['weighted'] = [loader.bs, len(a), sum(i>=20 for i in a+b)/len(a+b), a!=b]

# batch-norm: the running statistics are the first process's in both
net = nn.Sequential(nn.Conv2d(1,4,5,2), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16,10))
fit(Learner(digits_dls(n_train=64, bs=16), net), 1)
report['buffers equal'] = [same(flat(net)), bool(net[1].running_mean.any())]

# Ctrl-C in both
class CtrlC(Callback):
    def after_backward(self): raise KeyboardInterrupt
dls = digits_dls(n_train=64, bs=16)
learn = Learner(dls, lenet5(10))
try: fit(learn, 1, CtrlC())
except KeyboardInterrupt: pass
report['after Ctrl-C'] = [type(learn.model).__name__, type(learn.dls.train).__name__, 'cuda' in inspect.getsource(DistributedDL._broadcast)]
fit(learn, 1)

# errors are shared
class Odd(Exception):
    def __init__(self, a, b): super().__init__(f'{a} and {b}')
def error(f, *args):
    try: return repr(f(*args))
    except Exception as e: return f'{type(e).__name__}: {e}'
def only(r, e):
    def f():
        if rank_distrib()==r: raise e
        return rank_distrib()
    return f
report['by_first'] = gathered(error(by_first, only(0, OSError('full'))))
report['by_first odd'] = gathered(error(by_first, only(0, Odd(1, 2))))
report['by_first result'] = gathered(error(by_first, lambda: [os.getpid()]))
report['by_first unsendable'] = gathered(error(by_first, lambda: (lambda: 0)).split(':')[0])
report['by_all'] = gathered(error(by_all, only(1, ValueError('no data'))))
report['by_all odd'] = gathered(error(by_all, only(1, Odd(1, 2))))
report['by_all result'] = gathered(error(by_all, rank_distrib))
report['averaged'] = averaged([1, 2.*rank, None])

# one writer of the run folder
from focusnet_fastai.record import RunError
from focusnet_fastai.lab.runs import run
opened = set()
def hook(name, args):
    if name=='open' and isinstance(args[0], (str,os.PathLike)) and str(args[0]).startswith(str(folder/'runs')) and (args[2] or 0)&(os.O_WRONLY|os.O_RDWR|os.O_CREAT):
        opened.add(Path(args[0]).name)
sys.addaudithook(hook)
lines = []
res = run('digits', 'focusnet', 0, folder/'runs'/'focusnet-0', log=lines.append, epochs=2, n_train=200, bs=32)
report['results'] = gathered(res)
report['opened'] = [sorted(o) for o in gathered(opened)]
report['lines'] = [len(o) for o in gathered(lines)]
start = time.time()
report['again'] = [run('digits', 'focusnet', 0, folder/'runs'/'focusnet-0', log=noop, epochs=2, n_train=200, bs=32)==res, time.time()-start<5]
report['refused'] = gathered(error(lambda: run('digits', 'focusnet', 0, folder/'runs'/'focusnet-0', log=noop, epochs=3, n_train=200, bs=32)))
report['indivisible'] = gathered(error(lambda: run('digits', 'baseline', 0, folder/'odd', log=noop, epochs=1, n_train=200, bs=33)))
from focusnet_fastai.lab.files import locked
lock = by_first(lambda: setattr(builtins, 'held', locked(folder/'busy')) or held.__enter__())
report['busy'] = gathered(error(lambda: run('digits', 'baseline', 0, folder/'busy', log=noop, epochs=1, n_train=200)))
if not rank: held.__exit__(None, None, None)
if not rank: (folder/'report.json').write_text(json.dumps(report))
'''


@pytest.mark.slow
def test_two_processes(tmp_path):
    in_two_processes(tmp_path, 'import builtins, inspect\n' + TRAIN)
    r = json.loads((tmp_path/'report.json').read_text())
    assert r['world'] == [2, 2, 'gloo']
    # equal weights, one baseline, which is not wrapped
    assert r['base equal'] and r['base differs'] and r['frozen equal'] and r['weights equal'] and r['finite']
    assert r['looks'] == [14, True] and r['random numbers differ']
    assert r['plain again'] == ['Sequential', 'InMemoryDL', True, True] and r['after Ctrl-C'] == ['Sequential', 'InMemoryDL', True]
    # each image once, apart from padding
    assert r['epoch 0'] == r['epoch 1'] == [202, 201, True] and r['orders differ']
    assert r['pairs'] == [3, 3, True, True] and r['pairs weights']
    assert r['items'] == [51, 51, True]
    logged, exact = r['validation']  # 797 images, one of them counted twice
    assert logged == pytest.approx(exact, abs=.005) and exact[1] > .5
    bs, n, share, differ = r['weighted']
    assert (bs, n, differ) == (4, 400, True) and share == pytest.approx(.9, abs=.05)
    # averaged gradients
    difference, moved = r['difference']
    assert difference < 1e-5 and moved > 1e-2
    assert r['buffers equal'] == [True, True]
    # errors are shared
    assert r['by_first'] == ['OSError: full']*2 and r['by_first odd'] == ['Odd: 1 and 2', 'RuntimeError: Odd: 1 and 2']
    assert len(set(r['by_first result'])) == 1 and len(set(r['by_first unsendable'])) == 1 and r['by_first unsendable'][0].endswith('Error')
    assert r['by_all'] == ['ValueError: no data']*2 and r['by_all odd'] == ['RuntimeError: Odd: 1 and 2', 'Odd: 1 and 2'] and r['by_all result'] == ['0', '1']
    assert r['averaged'] == [1, 1., None]
    # one writer
    res = read_result(tmp_path/'runs'/'focusnet-0')
    assert r['results'] == [res, res] and res['processes'] == 2 and res['method'] == 'focusnet' and res['epochs'] == 2
    assert {'accuracy', 'top_5', 'cls', 'attention', 'entropy'} <= set(res['last']) and 0 <= res['p'] <= 1
    assert {'config.json.tmp', 'checkpoint.pth.tmp', 'log.csv.tmp', 'weights.pth.tmp', 'result.json.tmp', 'lock'} == set(r['opened'][0]) and r['opened'][1] == []
    folders = sorted((tmp_path/'runs').iterdir())
    assert len(folders) == 2 and all(sorted(o.name for o in f.iterdir()) == ['checkpoint.pth', 'config.json', 'lock', 'log.csv', 'result.json', 'weights.pth'] for f in folders)
    assert r['lines'] == [6, 0] and r['again'] == [True, True]
    assert all(o.startswith('RunError') and 'epochs is 2 there, 3 now' in o for o in r['refused'])
    assert all(o == 'ValueError: Batches of 33 images cannot be divided among 2 processes: choose another `bs`, or other processes' for o in r['indivisible'])
    assert all(o.startswith('RunError: Another run') for o in r['busy'])


RUN = '''
from focusnet_fastai.record import RunError
from focusnet_fastai.lab.checkpoint import RunKeeper
from focusnet_fastai.lab.runs import run
from focusnet_fastai.lab.recipes import digits
def crops(epochs:int=5, bs:int=32):
    "Digits in random crops: what each process draws matters"
    from focusnet_fastai.data.memory import CropBatch, FlipBatch
    t = digits(200, 0, epochs=epochs, dls=digits_dls(n_train=200, bs=bs, batch_tfms=[CropBatch(pad=2), FlipBatch()]))
    return t
def go(name, cbs=None, log=noop): return run(crops, 'focusnet', 0, folder/name/'focusnet', log=log)
'''


def rows(path): return max(len(path.read_text().splitlines())-1, 0) if path.exists() else 0


@pytest.mark.slow
def test_error_kill_and_resume(tmp_path):
    "An error in one process ends the job; SIGKILL ends it at any time; in the end the weights are those of an undisturbed run"
    log = tmp_path/'cut'/'focusnet'/'log.csv'
    # the second process fails in its third epoch, and the first one does not wait for it
    code, out, err = launch(tmp_path, RUN + dedent('''
    class Fails(Callback):
        def before_batch(self):
            if rank and self.training and self.epoch==2 and self.iter==1 and self.learn._grab_cbs(FocusNetCallback): raise SystemError('no more')
    defaults.callbacks += [Fails]
    go('cut')
    '''))
    assert code != 0 and 'no more' in err and rows(log) == 2, err[-4000:]
    # both killed in the fourth epoch
    jobs = forked(tmp_path, RUN + dedent('''
    class Slow(Callback):
        def before_batch(self):
            if self.training and self.epoch>=3: time.sleep(1)
    defaults.callbacks += [Slow]
    go('cut')
    '''))
    for _ in range(2400):
        if rows(log) == 3: break
        time.sleep(.05)
    time.sleep(.3)
    for o in jobs: os.kill(o.pid, signal.SIGKILL)
    assert [o.wait().returncode for o in jobs] == [-signal.SIGKILL]*2
    assert rows(log) == 3 and not (tmp_path/'cut'/'focusnet'/'result.json').exists()
    # continued, beside an undisturbed run
    in_two_processes(tmp_path, RUN + dedent('''
    lines = []
    go('cut', log=lines.append)
    go('whole')
    if not rank: (folder/'lines.txt').write_text(lines[0])
    '''))
    assert 'epochs 4 to 5' in (tmp_path/'lines.txt').read_text()
    for run in [o.name for o in (tmp_path/'whole').iterdir()]:
        a, b = [torch.load(tmp_path/o/run/'weights.pth') for o in ('cut', 'whole')]
        assert all(torch.equal(v, b[k]) for k, v in a.items())
    strip = lambda p: [o.rsplit(',', 1)[0] for o in p.read_text().splitlines()]
    assert strip(log) == strip(tmp_path/'whole'/'focusnet'/'log.csv')


def test_other_number_of_processes(tmp_path):
    "A checkpoint of two processes is not continued by one"
    from focusnet_fastai.record import RunError
    from focusnet_fastai.lab.checkpoint import RunKeeper
    torch.save(dict(names=[], rows=[[0]], train_seconds=0., peak=0, state={}, parts=[{}, {}]), tmp_path/'checkpoint.pth')
    with pytest.raises(RunError, match='begun with 2 processes, and now there are 1'): RunKeeper(tmp_path)


# --- logits that are kept ------------------------------------------------------------------------------------------------------

REMEMBERED = '''
from focusnet_fastai.remembered import RememberedBaseline
from focusnet_fastai.data.fixed_views import fixed_views
from focusnet_fastai.data.memory import CropBatch, FlipBatch
connect()
set_seed(0)
report,base = dict(world=[num_distrib(), dist.get_world_size(), dist.get_backend()]),lenet5(10)
if rank:
    with torch.no_grad(): next(base.parameters()).add_(1.)
class Look(Callback):
    "What is looked up against what the first process's baseline says, and how many images this process knows after an epoch"
    run_valid,order = False,1
    def after_loss(self):
        with torch.no_grad(): want = self.focus_net.frozen.frozen(self.x)
        self.learn.worst = max(self.learn.worst, (want-self.focus_net.baseline_logits).abs().max().item())
    def after_train(self): self.learn.known.append(int(self.focus_net.frozen.store.filled.sum()))
def trained(kind):
    tfms = [CropBatch(pad=2), FlipBatch()] if kind=='views' else []
    dls = digits_dls(n_train=96, bs=16, batch_tfms=tfms)
    learn = Learner(fixed_views(dls, 2) if tfms else dls, lenet5(10))
    learn.worst,learn.known = 0.,[]
    cbs = [FocusNetCallback(RememberedBaseline(base, folder=folder/kind)), Look()]
    with on_all_devices(learn), learn.no_bar(), learn.no_logging(): learn.fit(4, 1e-3, cbs=cbs)
    return learn
for kind in ('same','views'):
    first,again = trained(kind),trained(kind)
    distrib_barrier()
    report[kind] = dict(worst=gathered([first.worst, again.worst]), known=gathered([first.known, again.known]), equal=[same_in_both(o.model) for o in (first,again)],
                        places=sorted(o.name for o in (folder/kind).iterdir()))
if not rank: (folder/'report.json').write_text(json.dumps(report))
'''


@pytest.mark.slow
@pytest.mark.parametrize('machines', [1, 2])
def test_remembered_logits(tmp_path, machines):
    "Each process keeps the logits of the images that it meets, those of the first one's baseline; on one machine, and on two"
    if machines == 1: in_two_processes(tmp_path, REMEMBERED)
    else:
        ends = on_two_machines(tmp_path, REMEMBERED)
        assert all(code == 0 for code, _, _ in ends), [o[2][-3000:] for o in ends]
    r = json.loads((tmp_path/'report.json').read_text())
    assert r['world'] == [2, 2, 'gloo']
    for kind in ('same', 'views'):
        assert max(o for both in r[kind]['worst'] for o in both) < .02 and r[kind]['equal'] == [True, True]
        a, b = [o.split('-', 1) for o in r[kind]['places']]
        assert a[0] == b[0] and [a[1], b[1]] == ['0-of-2', '1-of-2']
        for first, again in r[kind]['known']: assert first[0] == 48 < first[1] <= first[3] <= again[0] <= (96 if kind == 'same' else 192)


# --- commands -----------------------------------------------------------------------------------------------------------

@pytest.mark.slow
def test_focusnet_run_in_two_processes(tmp_path):
    "One of them prints; the other command says that it works in one process"
    args = ['digits', 'focusnet', '--seeds', '0', '--folder', 'runs', '--set', 'epochs=2', 'n_train=100', 'bs=32']
    code, out, err = command(tmp_path, 'focusnet-run', *args)
    assert code == 0, err[-3000:]
    lines = out.splitlines()
    assert len(lines) == 8 and len(set(lines)) == 8 and lines[0] == 'Loading fastai ...' and lines[-1].startswith('seed 0: train_loss')
    results = [json.loads(o.read_text()) for o in (tmp_path/'runs').glob('*/result.json')]
    assert [o['processes'] for o in results] == [2, 2] and {o['method'] for o in results} == {'baseline', 'focusnet'}


def test_focusnet_train_is_for_one_process(tmp_path, monkeypatch):
    monkeypatch.setenv('WORLD_SIZE', '2')
    from focusnet_fastai.app.cli import focusnet_train
    with pytest.raises(SystemExit, match='focusnet-train: Photos are trained in one process'): focusnet_train(str(tmp_path), out=str(tmp_path/'out'))
    assert not (tmp_path/'out').exists()
