"Scripts and commands in two real processes on the CPU, over Gloo, for the tests of distributed training: started by torchrun or accelerate, or by fork"
import os, socket, subprocess, sys, textwrap
from pathlib import Path

import pytest
from helpers import fresh

here = Path(__file__).resolve().parent.parent
env = {**os.environ, 'PYTHONPATH': f'{here.parent}{os.pathsep}{here}', 'OMP_NUM_THREADS': '1', 'CUDA_VISIBLE_DEVICES': '', 'ACCELERATE_USE_CPU': '1', 'PYTHONWARNINGS': 'ignore'}
torchrun = ['-m', 'torch.distributed.run', '--standalone', '--nproc_per_node', '2']
accelerate = ['-m', 'accelerate.commands.launch', '--multi_gpu', '--num_processes', '2', '--num_machines', '1', '--mixed_precision', 'no',
              '--dynamo_backend', 'no', '--main_process_port', '0']
header = '''
import warnings; warnings.simplefilter('ignore')
import json, os, random, signal, sys, time, torch, torch.distributed as dist
torch.set_num_threads(1)
from pathlib import Path
from fastai.vision.all import *
from fastai.distributed import DistributedDL, teardown_distrib
from focusnet_fastai.data.digits import digits_dls
from focusnet_fastai.lab.distributed import *
from focusnet_fastai.focusnet import FocusNetCallback
from focusnet_fastai.methods.views import CSKD
from focusnet_fastai.models import lenet5
from focusnet_fastai.reference import Baseline, plain_network
from focusnet_fastai.frozen import FrozenNetwork
from torch.nn.parallel import DistributedDataParallel as DDP
folder,rank = Path(sys.argv[1]),rank_distrib()
def same_in_both(o):
    "Is a network, or a tensor, the same in both processes?"
    if isinstance(o, nn.Module): o = torch.cat([p.detach().float().flatten() for p in o.parameters()])
    a,b = gathered(o.detach().flatten())
    return torch.equal(a, b)
'''
footer = '''
distrib_barrier(); teardown_distrib()
'''


def job(folder, body):
    "A script that runs `body`"
    pytest.importorskip('accelerate')
    script, text = folder/'job.py', header + textwrap.dedent(body) + footer
    if not script.exists() or script.read_text() != text: script.write_text(text)
    return script


def started(folder, body, how=torchrun, **kwargs):
    "Two processes that run `body`, by a launcher"
    return subprocess.Popen([sys.executable, *how, str(job(folder, body)), str(folder)], text=True, env=env, cwd=folder, **kwargs)


def ended(job, timeout=240):
    "Exit code, standard output and error; afterwards no process is left"
    try: out, err = job.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        job.terminate()  # the launcher ends its processes
        out, err = job.communicate(timeout=60)
        pytest.fail(f'The job hung.\n{out[-2000:]}\n{err[-4000:]}')
    return job.returncode, out, err


def launch(folder, body, how=torchrun):
    "Two processes that run `body`, by a launcher"
    args = [sys.executable, *how, str(job(folder, body)), str(folder)]
    return ended(subprocess.Popen(args, text=True, env=env, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE))


def forked(folder, body):
    "The two processes that run `body`, without a launcher and its imports"
    return fresh.two(job(folder, body), folder, env=env, cwd=folder)


def on_two_machines(folder, body):
    "Two `torchrun`s with a process each, which find each other by c10d as those of two machines do; exit code, output and error of each"
    with socket.socket() as o:
        o.bind(('127.0.0.1', 0))
        port = o.getsockname()[1]
    def how(rank): return ['-m', 'torch.distributed.run', '--nnodes', '2', '--node_rank', str(rank), '--nproc_per_node', '1', '--rdzv_backend', 'c10d',
                           '--rdzv_id', 'focusnet', '--rdzv_endpoint', f'127.0.0.1:{port}', '--local_addr', '127.0.0.1']
    jobs = [started(folder, body, how(o), stdout=subprocess.PIPE, stderr=subprocess.PIPE) for o in (0, 1)]
    return [ended(o) for o in jobs]


def in_two_processes(folder, body):
    "What both printed in lines that begin with OK"
    both = [o.wait() for o in forked(folder, body)]
    assert [o.returncode for o in both] == [0, 0], [o.stderr[-3000:] for o in both]
    return [o[3:] for p in both for o in p.stdout.splitlines() if o.startswith('OK ')]


def command(folder, name, *args):
    "Run a command of this package in two processes, by accelerate"
    pytest.importorskip('accelerate')
    return ended(subprocess.Popen([sys.executable, *accelerate, '--no_python', str(Path(sys.executable).parent/name), *args],
                                  text=True, env=env, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE))
