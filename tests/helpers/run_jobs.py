"""A server of runs for the tests: it imports once, and makes each run in a forked process of its own, which can be killed.

A job is a line of JSON with the arguments of `run`, `out` (a file for what the run prints) or `tty` (the name of a pseudo-terminal), and perhaps `when`: what happens to the run at which moment. The answer is
the process's number;
`{"wait": number}` waits for it and answers with its exit code (negative: the signal that killed it).
"""
import ctypes, fcntl, gc, json, os, resource, signal, sys, termios, traceback, warnings
warnings.filterwarnings('ignore')
import torch
torch.set_num_threads(1)
from fastai.vision.all import *
from focusnet_fastai.record import RunError
from focusnet_fastai.data.memory import CropBatch, FlipBatch
from focusnet_fastai.data.digits import digits_dls, digits_stats
from focusnet_fastai.lab.runs import run
from focusnet_fastai.lab.recipes import one_cycle
from focusnet_fastai.lab.training import Training
from focusnet_fastai.terms import LossTerms


def crops(seed=0, epochs=3):
    "Digits in memory, cropped and flipped as whole batches"
    dls = digits_dls(n_train=200, seed=seed, bs=32, batch_tfms=[CropBatch(pad=4), FlipBatch(.5), Normalize.from_stats(*digits_stats)])
    return one_cycle(dls, 'lenet5', epochs, .02, opt_func=partial(SGD, mom=.9), he_init=True)


def photos(path, seed=0, epochs=3):
    "Image files, read and augmented one by one by two worker processes; a network with batch norm and dropout"
    dls = ImageDataLoaders.from_folder(path, bs=8, item_tfms=RandomResizedCrop(24, min_scale=.4), batch_tfms=[*aug_transforms(), RandomErasing(.7), Normalize.from_stats(*imagenet_stats)], num_workers=2)
    net = nn.Sequential(ConvLayer(3, 8, stride=2), ConvLayer(8, 16, stride=2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(.3), nn.Linear(16, dls.c))
    return Training(Learner(dls, net, lr=.01, metrics=accuracy), epochs, .01)


recipes = dict(crops=crops, photos=photos)
gc.freeze()  # the pages of what is loaded stay shared with the forked processes


class AtBatch(Callback):
    "Before the batch `when` of the method or of its baseline: killed, or it waits for Ctrl-C"
    when, do = None, 'kill'
    def before_batch(self):
        now = [getattr(self.learn, o, None) for o in ('epoch', 'training', 'iter')]  # outside of a fit there is no epoch
        here = ('method' if self.learn._grab_cbs(LossTerms) else 'baseline', *now)
        if here != self.when: return
        if self.do == 'kill': os.kill(os.getpid(), signal.SIGKILL)
        print('waiting', flush=True)
        signal.pause()


def at_file(event, file, n):
    "Killed when a file whose path ends in `file` is opened, or about to be moved into its place, for the n-th time"
    seen = []
    def hook(what, args):
        path = args[0] if what == 'open' and event == 'open' else args[1] if what == 'os.rename' and event == 'move' else None
        if isinstance(path, (str, os.PathLike)) and str(path).endswith(file):
            seen.append(path)
            if len(seen) == n: os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(hook)


def limit(n, kill):
    "Files can have `n` bytes at most; more is an error as on a full disk, or the kernel kills the process in the middle of the write"
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL if kill else signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


def obey_modes():
    "Let the superuser obey the permissions of files, as everybody else does"
    if os.geteuid(): return
    libc = ctypes.CDLL(None, use_errno=True)
    head, data = (ctypes.c_uint32*2)(0x20080522, 0), (ctypes.c_uint32*6)()
    assert libc.capget(head, data) == 0
    for i in (0, 2):  # effective and inheritable, low words; 1, 2: reading and writing everywhere
        data[i] &= ~0b110
    data[1] &= ~0b110
    assert libc.capset(head, data) == 0


def small_disk(path, size):
    "A file system of its own for `path`, seen by this process only; exit code 77 where that is not allowed"
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(0x20000) or libc.mount(b'none', b'/', None, 0x44000, None): os._exit(77)  # CLONE_NEWNS; MS_REC | MS_PRIVATE
    if libc.mount(b'tmpfs', os.fsencode(path), b'tmpfs', 0, f'size={size}'.encode()): os._exit(77)
    return lambda size: libc.mount(b'tmpfs', os.fsencode(path), b'tmpfs', 32, f'size={size}'.encode())  # MS_REMOUNT


def logger(when):
    "Prints; at the first line with the text `line` something happens"
    todo = dict(when) if when and 'line' in when else {}
    def log(*args):
        print(*args, flush=True)
        if not todo or todo['line'] not in str(args[0]): return
        what = todo.pop('do'); todo.clear()
        if what == 'kill': os.kill(os.getpid(), signal.SIGKILL)
        elif what == 'stop': os.kill(os.getpid(), signal.SIGSTOP)
        else: limit(**what)
    return log


def at_terminal(name):
    "Sit at a terminal of one's own, where Ctrl-C is typed"
    os.setsid()
    tty = os.open(name, os.O_RDWR)
    fcntl.ioctl(tty, termios.TIOCSCTTY, 0)
    for fd in range(3): os.dup2(tty, fd)


def to_file(name):
    "Print into a file"
    out = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for fd in (1, 2): os.dup2(out, fd)
    os.close(0)


def child(job):
    when, out, tty = job.pop('when', None), job.pop('out', None), job.pop('tty', None)
    if tty: at_terminal(tty)
    else: to_file(out)
    if when and 'method' in when:
        AtBatch.when, AtBatch.do = tuple(when[o] for o in ('method', 'epoch', 'train', 'iter')), when.get('do', 'kill')
        defaults.callbacks = [*defaults.callbacks, AtBatch]
    if when and 'event' in when: at_file(**when)
    if job.pop('obey', False): obey_modes()
    disk = job.pop('disk', None)
    recipe = job.pop('recipe'); recipe = recipes.get(recipe, recipe)
    go = partial(run, recipe, log=logger(when), **job)
    try:
        if not disk: return go() and 0
        grow = small_disk(**disk)
        try: go()
        except RunError as e: print('RunError:', e, flush=True)
        else: return 1
        torch.load(Path(job['folder'])/'checkpoint.pth', weights_only=True)
        if grow('100m'): return 1
        go()
        shutil.copytree(disk['path'], disk['path']+'-copy')
        return 0
    except RunError as e:
        print('RunError:', e, flush=True)
        return 3
    except KeyboardInterrupt: return 130
    except BaseException:
        traceback.print_exc()
        return 1


def main():
    for line in sys.stdin:
        job = json.loads(line)
        if 'wait' in job: print(os.waitstatus_to_exitcode(os.waitpid(job['wait'], 0)[1]), flush=True); continue
        pid = os.fork()
        if pid == 0:
            code = 1
            try: code = child(job)
            finally: sys.stdout.flush(); sys.stderr.flush(); os._exit(code)
        print(pid, flush=True)


if __name__ == '__main__': main()
