"Resuming where people sit, and with what they bring: terminals, notebooks, callbacks and optimisers of others, weighted sampling."
import os, pty, random, threading, time

import numpy as np, pandas as pd, pytest, torch
from fastai.vision.all import (Callback, CancelFitException, CSVLogger, DataLoaders, Datasets, EarlyStoppingCallback, GradientAccumulation, L, Learner, Optimizer, OptimWrapper, PartialDL,
    ReduceLROnPlateau, SaveModelCallback, WeightedDL, accuracy, noop, partial, ranger, set_seed, sgd_step)

from focusnet_fastai.record import RunError
from focusnet_fastai.data.digits import digits_dls
from focusnet_fastai.lab.checkpoint import RunKeeper
from focusnet_fastai.lab.distributed import split_batches
from focusnet_fastai.lab.training import image_subset, new_loader, Training
from focusnet_fastai.lab.recipes import one_cycle
from focusnet_fastai.lab.runs import run
from focusnet_fastai.lab.study import read_result
from focusnet_fastai.models import lenet5
from helpers.jobs import Jobs, KILL, SETTINGS
from helpers.kernels import Kernel

IN_EPOCH_2 = dict(method='method', epoch=1, train=True, iter=1)


# -- a terminal -------------------------------------------------------------------------------------------------------

class Terminal:
    "A pseudo-terminal, and what is shown on it"
    def __init__(self):
        self.ours, theirs = pty.openpty()
        self.name, self.shown = os.ttyname(theirs), ''
        self.theirs = theirs  # stays open, so that reading goes on after the run's end
        threading.Thread(target=self.read, daemon=True).start()

    def read(self):
        while True:
            try: self.shown += os.read(self.ours, 10_000).decode(errors='replace')
            except OSError: return

    def type(self, keys): os.write(self.ours, keys)
    def until(self, text, seconds=120):
        end = time.time() + seconds
        while text not in self.shown:
            assert time.time() < end, self.shown[-2000:]
            time.sleep(.02)


@pytest.fixture(scope='module')
def jobs(tmp_path_factory):
    jobs = Jobs(tmp_path_factory.mktemp('jobs'))
    yield jobs
    jobs.end()


def weights(folder): return torch.load(folder/'weights.pth', weights_only=True)
def log(folder): return pd.read_csv(folder/'log.csv').drop(columns='time')


def same(a, b):
    "Bit for bit, apart from times"
    wa, wb = weights(a), weights(b)
    assert list(wa) == list(wb) and all(torch.equal(wa[k], wb[k]) for k in wa)
    assert log(a).equals(log(b))
    drop = ('seconds', 'images_per_second', 'peak_memory', 'commit')
    ra, rb = [{k: v for k, v in read_result(o).items() if k not in drop} for o in (a, b)]
    assert ra == rb


@pytest.mark.slow
def test_at_a_terminal(jobs, tmp_path):
    "Under fastai's bars: Ctrl-C is typed in the second epoch, the same call is killed in the third, and then ends as one that was not disturbed"
    whole, cut = tmp_path/'whole'/'run', tmp_path/'cut'/'run'
    code, out = jobs.do('digits', 'focusnet', whole, **SETTINGS)
    assert code == 0, out
    tty = Terminal()
    pid = jobs.start('digits', 'focusnet', cut, tty=tty.name, when=dict(IN_EPOCH_2, do='wait'), **SETTINGS)
    tty.until('waiting')
    tty.type(b'\x03')
    assert jobs.wait(pid)[0] == 130 and RunKeeper(cut).done == 1
    assert '%' in tty.shown and 'valid_loss' in tty.shown  # fastai's bars and its table
    pid = jobs.start('digits', 'focusnet', cut, tty=tty.name, when=dict(method='method', epoch=2, train=True, iter=1), **SETTINGS)
    assert jobs.wait(pid)[0] == -KILL and RunKeeper(cut).done == 2
    code = jobs.wait(jobs.start('digits', 'focusnet', cut, tty=tty.name, **SETTINGS))[0]
    assert code == 0 and 'Traceback' not in tty.shown and 'epochs 3 to 3 epochs' in tty.shown, tty.shown[-2000:]
    same(whole, cut)


# -- a notebook -------------------------------------------------------------------------------------------------------

CELL = '''
import warnings; warnings.filterwarnings('ignore')
import os, signal, torch
torch.set_num_threads(1)
from fastai.vision.all import *
from focusnet_fastai.lab.runs import run
class Cut(Callback):
    at = None
    def before_batch(self):
        if self.at and (getattr(self.learn, 'epoch', None), self.learn.iter)==self.at[:2]: self.at[2]()
defaults.callbacks = [*defaults.callbacks, Cut]
'''
GO = "res = run('digits', 'baseline', 0, {!r}, n_train=200, epochs=4)\nprint('done', res['epochs'])"


@pytest.mark.slow
def test_in_a_notebook(tmp_path):
    "Interrupted in the second epoch and run again in the same kernel; killed with its kernel in the third, and ended by another kernel"
    pytest.importorskip('ipykernel')
    folder = str(tmp_path/'cut'/'run')
    kernel = Kernel()
    try:
        assert kernel.do(CELL)[0] == 'ok'
        assert kernel.do(f"Cut.at = (1, 1, lambda: os.kill(os.getpid(), signal.SIGINT))\n{GO.format(folder)}")[0] == 'error'
        assert RunKeeper(tmp_path/'cut'/'run').done == 1
        kernel.client.execute(f"Cut.at = (2, 1, lambda: os.kill(os.getpid(), signal.SIGKILL))\n{GO.format(folder)}")
        end = time.time() + 120
        while kernel.manager.is_alive() and time.time() < end: time.sleep(.1)
        assert RunKeeper(tmp_path/'cut'/'run').done == 2
    finally: kernel.end()
    kernel = Kernel()
    try:
        assert kernel.do(CELL)[0] == 'ok'
        status, shown = kernel.do(GO.format(folder))
        text = str(shown)
        assert status == 'ok' and 'done 4' in text, text[-3000:]
        assert 'epochs 3 to 4 epochs' in text and any(kind in ('display_data', 'update_display_data') for kind, _ in shown)  # a bar, as HTML
        assert kernel.do(GO.format(str(tmp_path/'whole'/'run')))[0] == 'ok'
    finally: kernel.end()
    same(tmp_path/'whole'/'run', tmp_path/'cut'/'run')


# -- callbacks and optimisers of others -------------------------------------------------------------------------------

class Stop(Exception): pass


class CutIn(Callback):
    "Ends a run in the middle of an epoch"
    order, at = 500, None
    def before_batch(self):
        if self.training and (self.epoch, self.iter) == CutIn.at: raise Stop('cut')


def resumed(recipe, root, at=(2, 1), method='baseline', **config):
    "The folders of a whole run, and of one that was cut and went on"
    CutIn.at = None
    run(recipe, method, 0, root/'whole'/'run', log=noop, **config)
    CutIn.at = at
    with pytest.raises(Stop): run(recipe, method, 0, root/'cut'/'run', log=noop, **config)
    CutIn.at = None
    run(recipe, method, 0, root/'cut'/'run', log=noop, **config)
    same(root/'whole'/'run', root/'cut'/'run')
    return root/'whole'/'run'


def dls(**kwargs): return image_subset(digits_dls(n_train=150, **{'bs': 32, **kwargs}), 100, split=1)


def training(cbs=(), epochs=5, lr=.01, opt_func=None, **kwargs):
    "A training at a constant rate, with callbacks of fastai or of a user"
    opt = dict(opt_func=opt_func) if opt_func else {}
    return Training(Learner(dls(**kwargs), lenet5(10), metrics=accuracy, cbs=[CutIn(), *L(cbs)], **opt), epochs, lr)


class Counts(Callback):
    "Its own loss weight depends on what it has seen"
    def __init__(self): self.n, self.seen = 0, {}
    def after_loss(self):
        if not self.training: return
        self.n += 1
        self.seen[int(self.y[0])] = self.n
        self.learn.loss_grad = self.learn.loss_grad*(1 + .1*(self.n % 3) + .01*len(self.seen))


CALLBACKS = dict(
    early=lambda: EarlyStoppingCallback('accuracy', min_delta=1., patience=4),  # counts past the cut, and ends the fit in the fifth epoch
    plateau=lambda: ReduceLROnPlateau('accuracy', min_delta=1., patience=2, factor=5.),
    accumulation=lambda: GradientAccumulation(70),  # 3 batches a step, 4 in an epoch
    counts=Counts)


@pytest.mark.slow
@pytest.mark.parametrize('name', CALLBACKS)
def test_callbacks_remember(tmp_path, name):
    "A resumed run is bit-equal with callbacks whose memory decides"
    def recipe(epochs=6): return training(CALLBACKS[name](), epochs)
    folder = resumed(recipe, tmp_path)
    if name != 'early': return
    res = read_result(folder)
    assert res['epochs'] == len(log(folder)) == 5 and res['last']['epoch'] == 4  # the epoch in which it stopped is there
    assert run(recipe, 'baseline', 0, folder, log=noop) == res


def test_early_stop_and_a_kill_before_the_result(tmp_path):
    "A run that was stopped does not begin to train again"
    def recipe(epochs=6): return training(EarlyStoppingCallback('accuracy', min_delta=1., patience=2), epochs)
    res = run(recipe, 'baseline', 0, tmp_path/'run', log=noop)
    for o in ('result.json', 'weights.pth'): (tmp_path/'run'/o).unlink()
    again = run(recipe, 'baseline', 0, tmp_path/'run', log=noop)
    assert again['epochs'] == 3 and all(again[k] == res[k] for k in ('last', 'best', 'ece', 'weights'))


class Average(Callback):
    "Keeps a network, which nobody saves"
    def before_fit(self): self.smoothed = lenet5(10)


class File(Callback):
    def __init__(self, path): self.file = open(path, 'w')


@pytest.mark.parametrize('make, message', [
    (lambda tmp: SaveModelCallback(), 'SaveModelCallback cannot be part of a run: .* Leave it out'),
    (lambda tmp: CSVLogger(), 'CSVLogger cannot be part of a run: `log.csv`'),
    (lambda tmp: Average(), r'The callback Average cannot be resumed after a kill: its `smoothed` \(Sequential\) is not kept'),
    (lambda tmp: File(tmp/'f'), r'The callback File cannot be resumed after a kill: its `file` \(TextIOWrapper\) is not kept')])
def test_callbacks_refused(tmp_path, make, message):
    "By name, before the first step"
    steps = []
    class Step(Callback):
        def before_step(self): steps.append(1)
    def recipe(epochs=2): return training([make(tmp_path), Step()], epochs)
    with pytest.raises(RunError, match=message): run(recipe, 'baseline', 0, tmp_path/'run', log=noop)
    assert not steps and not (tmp_path/'run'/'checkpoint.pth').exists()


@pytest.mark.slow
def test_state_of_ones_own(tmp_path):
    "`state_dict` and `load_state_dict` are asked where they are there"
    class Walk(Callback):
        def before_fit(self): self.rng = random.Random(1)
        def state_dict(self): return dict(rng=self.rng.getstate())
        def load_state_dict(self, s): self.rng.setstate(s['rng'])
        def after_loss(self): self.learn.loss_grad = self.learn.loss_grad*self.rng.uniform(.5, 2)
    def recipe(epochs=4): return training(Walk(), epochs)
    resumed(recipe, tmp_path)


def test_a_state_that_is_empty_at_first(tmp_path):
    "A callback that has nothing to remember yet is no reason to stop"
    class Late(Callback):
        seen = None
        def state_dict(self): return self.seen or {}
        def load_state_dict(self, s): self.seen = s
        def after_epoch(self): self.seen = dict(n=2) if self.epoch == 2 else self.seen
        def after_loss(self): self.learn.loss_grad = self.learn.loss_grad*(self.seen or {}).get('n', 1)
    def recipe(epochs=4): return training(Late(), epochs)
    resumed(recipe, tmp_path, at=(1, 1))


@pytest.mark.slow
def test_two_of_a_kind(tmp_path):
    "Callbacks of the same name do not take each other's memory"
    def recipe(epochs=6): return training([EarlyStoppingCallback('accuracy', min_delta=1., patience=9), EarlyStoppingCallback('valid_loss', min_delta=9., patience=4)], epochs)
    assert len(log(resumed(recipe, tmp_path))) == 5


def test_broken_off_within_an_epoch(tmp_path):
    "There is no result for weights that no line of the log speaks of"
    class Off(Callback):
        def after_batch(self):
            if self.training and (self.epoch, self.iter) == (1, 2): raise CancelFitException
    def recipe(epochs=3): return training(Off(), epochs)
    with pytest.raises(RunError, match='A callback ended the training in .* in the middle of epoch 2, so there is no result'): run(recipe, 'baseline', 0, tmp_path/'run', log=noop)
    assert len(log(tmp_path/'run')) == 1 and not (tmp_path/'run'/'result.json').exists()


def test_result_and_weights_belong_together(tmp_path):
    "Also where a callback puts other weights into the network after the fit"
    class Other(Callback):
        order = 20_000
        def after_fit(self):
            for p in self.model.parameters(): p.data.zero_()
    def recipe(epochs=2): return training(Other(), epochs)
    res = run(recipe, 'baseline', 0, tmp_path/'run', log=noop)
    learn = recipe().learn
    learn.model.load_state_dict(weights(tmp_path/'run'))
    with learn.no_bar(), learn.no_logging(): loss, acc = learn.validate()
    assert (loss, acc) == pytest.approx((res['last']['valid_loss'], res['last']['accuracy']), abs=1e-6)


OPTIMISERS = dict(ranger=ranger, adamw=partial(OptimWrapper, opt=torch.optim.AdamW), sgd=partial(OptimWrapper, opt=partial(torch.optim.SGD, momentum=.9, nesterov=True)),
                  rmsprop=partial(OptimWrapper, opt=torch.optim.RMSprop))


@pytest.mark.slow
@pytest.mark.parametrize('name', OPTIMISERS)
def test_optimisers(tmp_path, name):
    "One cycle with the optimisers of others, bit-equal after a cut"
    def recipe(epochs=4):
        t = one_cycle(dls(), 'lenet5', epochs, .01, opt_func=OPTIMISERS[name])
        t.learn.add_cb(CutIn())
        return t
    resumed(recipe, tmp_path)


class Forgetful(Optimizer):
    "Its state holds a function"
    def state_dict(self): return dict(super().state_dict(), schedule=lambda step: 1/step)


class Counting(Optimizer):
    "Every third step is a small one; the count is in no `state_dict`"
    count = 0
    def step(self):
        self.count += 1
        self.set_hyper('lr', 1e-3 if self.count % 3 == 0 else .1)
        super().step()


class CountingAdam(torch.optim.Adam):
    "The same, PyTorch's"
    def step(self, *args, **kwargs):
        self.count = getattr(self, 'count', 0) + 1
        for g in self.param_groups: g['lr'] = 1e-4 if self.count % 3 == 0 else 1e-2
        return super().step(*args, **kwargs)


@pytest.mark.parametrize('name, opt', dict(fastai=lambda params, **kw: Counting(params, sgd_step, **kw), torch=partial(OptimWrapper, opt=CountingAdam)).items())
def test_optimisers_of_ones_own(tmp_path, name, opt):
    "What they keep beside their state is kept too"
    def recipe(epochs=4): return training(epochs=epochs, opt_func=opt)
    resumed(recipe, tmp_path)


class Nameless(Optimizer):
    def state_dict(self): raise NotImplementedError('no state')


@pytest.mark.parametrize('kind', [Forgetful, Nameless])
def test_optimisers_refused(tmp_path, kind):
    "Before the first step"
    def recipe(epochs=2): return training(epochs=epochs, opt_func=lambda params, **kw: kind(params, sgd_step, **kw))
    with pytest.raises(RunError, match=f'The optimiser {kind.__name__} cannot be resumed after a kill: its state is not kept'): run(recipe, 'baseline', 0, tmp_path/'run', log=noop)
    assert not (tmp_path/'run'/'checkpoint.pth').exists()


# -- loaders ----------------------------------------------------------------------------------------------------------

def test_weights_of_images_are_kept(monkeypatch):
    "In a part of the images, and where batches are divided"
    ys = np.arange(40) % 4
    data = Datasets(list(range(40)), [[noop], [lambda i: ys[i]]], splits=[list(range(30)), list(range(30, 40))])
    wgts = [10. if y == 3 else 1. for y in ys[:30]]
    dls = DataLoaders(WeightedDL(data.train, bs=6, shuffle=True, wgts=wgts), data.valid)
    part = image_subset(dls, 20)
    kept = list(part.train.dataset.items)
    want = np.array([wgts[i] for i in kept])
    assert type(part.train) is WeightedDL and part.train.wgts == pytest.approx(want/want.sum())
    set_seed(0)
    drawn = [ys[kept[i]] for _ in range(50) for i in part.train.get_idxs()]
    assert np.mean(np.array(drawn) == 3) > .5
    monkeypatch.setenv('WORLD_SIZE', '2')
    new = split_batches(dls)
    assert new.train.bs == 3 and new.train.wgts == pytest.approx(np.array(wgts)/sum(wgts))


def test_own_loaders_are_kept_or_refused():
    "Number of a PartialDL; a loader that forgets its argument; one that chooses its images by itself; PyTorch's own"
    d = digits_dls(n_train=100, bs=10)
    partly = DataLoaders(PartialDL(list(range(100)), bs=10, partial_n=30), d.valid)
    assert (len(partly.train), len(new_loader(partly.train, bs=5))) == (3, 6)
    class Forgets(WeightedDL):
        def __init__(self, dataset=None, bs=None, temperature=1., **kwargs): super().__init__(dataset, bs, **kwargs)
    with pytest.raises(TypeError, match='Cannot make another Forgets: it does not keep its `temperature`'): new_loader(Forgets(list(range(9)), bs=3), bs=2)
    d.train.get_idxs = lambda: [0]*20
    with pytest.raises(TypeError, match='`get_idxs` of its own'): image_subset(d, 50)
    assert new_loader(d.train, bs=5).get_idxs() == [0]*20
    plain = torch.utils.data.DataLoader(d.train_ds, batch_size=10)
    with pytest.raises(TypeError, match='Cannot make another DataLoader'): new_loader(plain, bs=5)
