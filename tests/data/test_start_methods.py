"Worker processes get loaders of every kind however they are started: fork (Linux), forkserver (Linux from Python 3.14 on), spawn (Windows, macOS)"
import multiprocessing, pickle
from multiprocessing.reduction import ForkingPickler
import pytest, torch
from helpers import fresh, start_methods
from helpers.miniatures import save


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
    out = fresh.Fresh([start_methods.__file__, folder, *methods], script=start_methods.__file__).wait()
    assert out.stdout.split('\n') == ['done', ''], out.stdout + out.stderr[-3000:]
