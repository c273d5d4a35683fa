"Runs in processes of their own, for tests that kill them: one server imports once, and forks a process for each run (run_jobs.py)"
import json, os, signal, subprocess, sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
KILL = signal.SIGKILL
SETTINGS = dict(n_train=200, epochs=3)  # three batches of 64 an epoch


class Jobs:
    "Runs in processes of their own"
    def __init__(self, tmp):
        self.tmp, self.n, self.outs = tmp, 0, {}
        path = os.pathsep.join([str(ROOT), os.environ.get('PYTHONPATH', '')])
        self.server = subprocess.Popen([sys.executable, str(ROOT/'tests'/'helpers'/'run_jobs.py')], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                                       env={**os.environ, 'PYTHONPATH': path})

    def ask(self, o):
        self.server.stdin.write(json.dumps(o) + '\n')
        self.server.stdin.flush()
        return int(self.server.stdout.readline())

    def start(self, recipe, method, folder, **job):
        "The number of a process that runs"
        self.n += 1
        out = self.tmp/f'{self.n}.txt'
        out.touch()
        pid = self.ask(dict(recipe=recipe, method=method, folder=str(folder), seed=0, out=str(out), **job))
        self.outs[pid] = out
        return pid

    def wait(self, pid):
        "Exit code and what was printed"
        return self.ask(dict(wait=pid)), self.outs.pop(pid).read_text()

    def do(self, *args, **kwargs): return self.wait(self.start(*args, **kwargs))

    def end(self):
        self.server.stdin.close()
        self.server.wait(20)
