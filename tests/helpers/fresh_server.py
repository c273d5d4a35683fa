"""A server of fresh processes for the tests (helpers/fresh.py): it imports fastai, and forks a process for each job, a line of JSON.

A job has `script` (a file of Python) or `code`, `args`, `env`, `cwd`, and `out` and `err` (files) or `tty` (the name of a pseudo-terminal); `largest`, if a file may have so many bytes
at most; `without`, if a package cannot be imported. The answer is the process's number. `{"wait": number, "seconds": n}` answers with the exit code, negative for the signal that ended it.
This package is not imported before the fork."""
import fcntl, gc, json, os, resource, runpy, signal, sys, termios, time, types, warnings
warnings.filterwarnings('ignore')
import torch
torch.set_num_threads(1)
from fastai.vision import all as _
gc.freeze()  # the pages of what is loaded stay shared with the forked processes


def say(o): print(o, flush=True)


def ended(wait, seconds):
    "The exit code; a process that takes longer is killed, with all that it started"
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pid, status = os.waitpid(wait, os.WNOHANG)
        if pid: return os.waitstatus_to_exitcode(status)
        time.sleep(.02)
    os.killpg(wait, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(wait, 0)[1])


def forked():
    "In a new process: its job. In the server: None, at the end"
    for line in sys.stdin:
        job = json.loads(line)
        if 'wait' in job: say(ended(**job))
        elif pid := os.fork(): say(pid)
        else: return job


class Missing:
    "Does not find a package, which may have been imported with fastai"
    def __init__(self, name):
        self.name = name
        for o in [o for o in sys.modules if o.split('.')[0] == name]: del sys.modules[o]
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] == self.name: raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def open_files(out=None, err=None, tty=None):
    "Standard input, output and error are files or a terminal"
    if tty: fds = [os.open(tty, os.O_RDWR)]*3
    else: fds = [os.open(os.devnull, os.O_RDONLY), *[os.open(o, os.O_WRONLY | os.O_APPEND) for o in (out, err)]]
    if tty: fcntl.ioctl(fds[0], termios.TIOCSCTTY, 0)
    for i, fd in enumerate(fds): os.dup2(fd, i)
    encoding = os.environ.get('PYTHONIOENCODING')
    if encoding:
        sys.stdout.reconfigure(encoding=encoding, errors='strict')
        sys.stderr.reconfigure(encoding=encoding, errors='backslashreplace')
    sys.stdout.reconfigure(line_buffering=bool(tty))


def settle(args, env, cwd, largest=None, without=None, **files):
    "What a process has from its beginning"
    os.setsid()
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    open_files(**files)
    if largest: resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))
    if without: sys.meta_path.insert(0, Missing(without))
    sys.path[0], sys.argv = '', args


def run(script=None, code=None):
    "A file, or code as `python -c` runs it"
    if script: return runpy.run_path(script, run_name='__main__')
    main = sys.modules['__main__'] = types.ModuleType('__main__')
    exec(compile(code, '<string>', 'exec'), main.__dict__)


if job := forked():
    what = {k: job.pop(k, None) for k in ('script', 'code')}
    settle(**job)
    run(**what)
