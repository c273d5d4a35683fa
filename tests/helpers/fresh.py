"""Fresh processes without the seconds that fastai's import takes: a server (fresh_server.py) imports it once, and forks a process for each script, command or piece of code.

One test of each command starts a real process; the others use these."""
import atexit, functools, json, os, socket, subprocess, sys, tempfile
from pathlib import Path
from types import SimpleNamespace

ROOT = Path(__file__).resolve().parents[2]
bindir = Path(sys.executable).parent


class Server:
    "Processes by fork"
    def __init__(self):
        env = {**os.environ, 'PYTHONPATH': os.pathsep.join([str(ROOT), str(ROOT/'tests')]), 'OMP_NUM_THREADS': '1'}
        script = Path(__file__).with_name('fresh_server.py')
        self.process = subprocess.Popen([sys.executable, script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)

    def ask(self, **job):
        self.process.stdin.write(json.dumps(job) + '\n')
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def end(self):
        self.process.stdin.close()
        self.process.wait(20)


@functools.cache
def server():
    "One for all tests of this process"
    s = Server()
    atexit.register(s.end)
    return s


class Fresh:
    "A process with files for what it prints, or on a terminal"
    def __init__(self, args=(), cwd=None, env=None, tty=None, **job):
        files = dict(tty=tty) if tty else {k: self.file() for k in ('out', 'err')}
        self.out, self.err = files.get('out'), files.get('err')
        self.pid = server().ask(args=list(map(str, args)), cwd=str(cwd or os.getcwd()), env=dict(env or os.environ), **files, **job)

    def file(self):
        fd, name = tempfile.mkstemp()
        os.close(fd)
        return name

    @property
    def printed(self): return Path(self.out).read_text(errors='replace')

    def wait(self, seconds=300, encoding='utf-8'):
        "As `subprocess.run` has it"
        code = server().ask(wait=self.pid, seconds=seconds)
        if not self.out: return SimpleNamespace(returncode=code)
        texts = [Path(o).read_text(encoding=encoding) for o in (self.out, self.err)]
        for o in (self.out, self.err): os.unlink(o)
        return SimpleNamespace(returncode=code, stdout=texts[0], stderr=texts[1])


def started(name, *args, **kw): return Fresh([bindir/name, *args], script=str(bindir/name), **kw)  # a command of this package


def command(name, *args, encoding='utf-8', **kw):
    "A command of this package, as its script runs it"
    return started(name, *args, **kw).wait(encoding=encoding)


def python(code, *args, **kw):
    "As `python -c`"
    return Fresh(['-c', *args], code=code, **kw).wait()


def free_port():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]


def two(script, *args, env=None, **kw):
    "A script in two processes that know of each other, as torchrun starts them"
    env = {**(env or os.environ), 'WORLD_SIZE': '2', 'LOCAL_WORLD_SIZE': '2', 'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': str(free_port())}
    return [Fresh([script, *args], script=str(script), env={**env, 'RANK': o, 'LOCAL_RANK': o}, **kw) for o in '01']
