"Worker processes get the loaders however they are started: fork (Linux), forkserver (Linux from Python 3.14 on), spawn (Windows, macOS)"
import multiprocessing, os, pickle, subprocess, sys
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
import pytest, torch
from helpers import start_methods
from helpers.miniatures import save

pytestmark = pytest.mark.slow  # as a whole; `make quick` leaves it out

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture()
def folder(tmp_path):
    for i in range(16): save(tmp_path/'photos'/'ab'[i % 2]/f'{i}.jpg', (40, 30), seed=i)
    return tmp_path/'photos'


def test_what_workers_get(folder):
    "The loaders as they are sent to a new process give the same batches there"
    for name, dl in start_methods.loaders(folder):
        sent = pickle.loads(bytes(ForkingPickler.dumps(dl)))
        for a, b in zip(dl, sent, strict=True):
            assert a[0].shape == b[0].shape and ('training' in name or torch.equal(a[0], b[0]))


@pytest.mark.slow
def test_real_workers(folder):
    methods = [o for o in ('fork', 'forkserver', 'spawn') if o in multiprocessing.get_all_start_methods()]
    env = {**os.environ, 'PYTHONPATH': os.pathsep.join([str(ROOT), str(ROOT/'tests')]), 'OMP_NUM_THREADS': '1'}
    out = subprocess.run([sys.executable, ROOT/'tests'/'helpers'/'start_methods.py', folder, *methods], capture_output=True, text=True, env=env)
    assert out.stdout.split('\n') == ['done', ''], out.stdout + out.stderr[-3000:]
