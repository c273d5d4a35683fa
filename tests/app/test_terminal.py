"The commands where people sit: on a terminal, with progress bars and Ctrl-C."
import json, os, subprocess, time
import pytest, torch
from focusnet_fastai.app.photo_network import digit_photos
from helpers import fresh
from helpers.fresh import bindir

pty = pytest.importorskip('pty', reason='There are no pseudo-terminals on this system')
import fcntl, select, termios
pytestmark = pytest.mark.usefixtures('own_home')


class Terminal:
    "A command on a terminal of its own: a new interpreter, or one that was forked"
    def __init__(self, name, *args, new=False, **kw):
        self.master, self.slave = pty.openpty()
        self.text, env = '', {k: v for k, v in os.environ.items() if k not in ('MPLBACKEND', 'COLUMNS')}
        if new: self.wait = self.popen(name, *args, env=env, **kw).wait
        else: self.wait = fresh.started(name, *args, tty=os.ttyname(self.slave), env=env, **kw).wait

    def popen(self, name, *args, **kw):
        return subprocess.Popen([bindir/name, *map(str, args)], stdin=self.slave, stdout=self.slave, stderr=self.slave, start_new_session=True,
                                preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0), **kw)

    def read(self, seconds=1.):
        "Take what has come; False at the end"
        if not select.select([self.master], [], [], seconds)[0]: return True
        try: new = os.read(self.master, 2**16)
        except OSError: new = b''  # Linux's way to say that nobody writes any more
        if not self.text: os.close(self.slave)  # the command has it now
        self.text += new.decode(errors='replace')
        return bool(new)

    def until(self, there, seconds=240):
        "Read until `there()` is true"
        end = time.monotonic() + seconds
        while not there() and self.read(.05): assert time.monotonic() < end, self.text[-2000:]
        return self

    def ctrl_c(self):
        os.write(self.master, b'\x03')
        return self

    def end(self, seconds=240):
        "Exit code"
        end = time.monotonic() + seconds
        while self.read(): assert time.monotonic() < end, self.text[-2000:]
        os.close(self.master)
        code = self.wait(60)
        return getattr(code, 'returncode', code)


@pytest.fixture(scope='module')
def photos(tmp_path_factory):
    "Two classes of digits, and weights of a baseline that nobody has trained"
    from focusnet_fastai.app.photo_network import photo_learner
    from focusnet_fastai.data.folder import folder_dls
    tmp = tmp_path_factory.mktemp('terminal')
    photos = digit_photos(tmp/'photos', (3, 8), n=60)
    learn = photo_learner(folder_dls(photos, size=32, num_workers=0), 'squeezenet1_1', pretrained=False)
    torch.save(learn.model.state_dict(), tmp/'weights.pth')
    return photos


@pytest.mark.parametrize('seconds', [0, .3, 1.])
@pytest.mark.slow
def test_ctrl_c_with_workers(photos, tmp_path, seconds):
    "Whenever it comes, the end is the same sentence"
    args = ('--baseline', photos.parent/'weights.pth', '--arch', 'squeezenet1_1', '--no-pretrained', '--size', 32, '--workers', 2, '--epochs', 500, '--out', tmp_path/'out')
    t = Terminal('focusnet-train', photos, *args)
    t.until(lambda: 'Epoch' in t.text.partition('FocusNet:')[2] or '%' in t.text.partition('FocusNet:')[2])
    time.sleep(seconds)
    assert t.ctrl_c().end() == 130, t.text[-2000:]
    assert 'focusnet-train: stopped. The baseline is as it was; nothing was written.' in t.text and 'Traceback' not in t.text, t.text[-2000:]


@pytest.mark.slow
def test_run_goes_on_after_ctrl_c(tmp_path):
    "The same command twice, the first time stopped; the result is that of a run that nobody disturbed"
    args = ('digits', 'baseline', '--seeds', 0, '--set', 'epochs=25', 'n_train=200')
    t = Terminal('focusnet-run', *args, '--folder', 'runs', cwd=tmp_path)
    t.until(lambda: list((tmp_path/'runs').glob('*/checkpoint.pth')))
    assert t.ctrl_c().end() == 130 and 'The same command goes on after the last whole epoch.' in t.text, t.text[-2000:]
    assert not list((tmp_path/'runs').glob('*/result.json'))
    again = Terminal('focusnet-run', *args, '--folder', 'runs', cwd=tmp_path)
    assert again.end() == 0, again.text[-2000:]
    whole = fresh.command('focusnet-run', *args, '--folder', 'whole', cwd=tmp_path)
    results = [json.loads(next((tmp_path/o).glob('*/result.json')).read_text()) for o in ('runs', 'whole')]
    assert whole.returncode == 0 and results[0]['last']['accuracy'] == results[1]['last']['accuracy']


LOST = """
import os, signal
from fastai.vision.all import Callback, defaults
class Once:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)
        for _ in range(1000): pass
class Lost(Callback):
    def before_batch(self):
        if self.training and (self.epoch, self.iter) == (1, 0): Once()
defaults.callbacks = [*defaults.callbacks, Lost]
from focusnet_fastai.app.cli import focusnet_run
focusnet_run('digits', 'baseline', folder='runs', set=['epochs=40', 'n_train=80'])
"""


@pytest.mark.slow
def test_a_ctrl_c_that_is_lost(tmp_path):
    "Where Python ignores exceptions, as while it forks: the run ends after the batch all the same"
    res = fresh.python(LOST, cwd=tmp_path)
    assert res.returncode == 130 and 'focusnet-run: stopped. The same command goes on after the last whole epoch.' in res.stderr, res.stderr
    assert 'epoch 1/40' in res.stdout and 'epoch 2/40' not in res.stdout


STARTING = """
import os, signal, sys
from multiprocessing.process import BaseProcess
start = BaseProcess.start
def interrupted(self):
    os.kill(os.getpid(), signal.SIGINT)
    for _ in range(1000): pass
    start(self)
BaseProcess.start = interrupted
from focusnet_fastai.app.cli import focusnet_train
focusnet_train(sys.argv[1], out='out', pretrained=False, size=32, workers=1, arch='squeezenet1_1', epochs=3, bs=4)
"""


@pytest.mark.slow
def test_a_ctrl_c_while_workers_start(photos, tmp_path):
    "The loader that is half made says nothing at the end"
    res = fresh.python(STARTING, photos, cwd=tmp_path)
    assert res.returncode == 130 and res.stderr.strip() == 'focusnet-train: stopped. Nothing was written.', res.stderr


HUNG_UP = """
import multiprocessing as mp, os, select, socket, sys
from multiprocessing.reduction import DupFd
from focusnet_fastai.app.checks import only_main_stops
def worker(line):
    "Offers two files, as PyTorch's workers do with batches, and waits until it is told to go"
    for _ in range(2): line.send(DupFd(1))
    line.recv()
    if len(sys.argv)>1: sys.excepthook(ValueError, ValueError('news'), None)
with only_main_stops():
    line, other = mp.Pipe()
    process = mp.get_context('fork').Process(target=worker, args=(other,))
    process.start()
    first, second = line.recv(), line.recv()
    with socket.socket(socket.AF_UNIX) as s:
        s.connect(first._id[0])
        select.select([s], [], [])  # its first bytes are there, and nobody reads them
    os.close(second.detach())  # the thread has told of the first by now
    line.send('go')
    process.join()
"""


def test_a_worker_whose_batch_is_not_fetched(tmp_path):
    "Ctrl-C between a batch's name and its bytes: the worker's thread says nothing, and what else goes wrong there is still told"
    for args in [(), ('news',)]:
        res = fresh.python(HUNG_UP, *args, cwd=tmp_path)
        assert res.returncode == 0 and res.stderr.strip() == 'ValueError: news'*len(args), res.stderr


def test_help_on_a_terminal(tmp_path):
    t = Terminal('focusnet-train', '--help', new=True)
    assert t.end() == 0 and '--seeds N' in t.text and 'Traceback' not in t.text
