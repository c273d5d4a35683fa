"A script in two processes on the CPU, for the tests of distributed training."
import os, subprocess, sys, textwrap
from pathlib import Path

start = '''
import warnings; warnings.simplefilter('ignore')
import os, random, torch, torch.distributed as dist
torch.set_num_threads(1)
from torch import nn
from torch.nn.parallel import DistributedDataParallel as DDP
from fastai.vision.all import *
from fastai.distributed import *
from focusnet_fastai.data import digits_dls
def to_gloo(self, t, rank):  # fastai's moves to CUDA, which only nccl needs
    t = torch.tensor(t); dist.broadcast(t, rank); return t.tolist()
DistributedDL._broadcast = to_gloo
def same_in_both(model):
    w = torch.cat([p.detach().flatten() for p in model.parameters()])
    both = [torch.empty_like(w) for _ in range(2)]
    dist.all_gather(both, w)
    return torch.equal(*both)
'''
end = '''
distrib_barrier(); teardown_distrib()
'''


def in_two_processes(folder, code):
    "Run `code` with torchrun, and give what it printed in lines that begin with OK"
    script, here = folder/'ddp.py', Path(__file__).resolve().parent
    script.write_text(start + textwrap.dedent(code) + end)
    env = {**os.environ, 'PYTHONPATH': f'{here.parent}{os.pathsep}{here}', 'OMP_NUM_THREADS': '1', 'ACCELERATE_USE_CPU': '1', 'CUDA_VISIBLE_DEVICES': ''}
    out = subprocess.run([sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node', '2', str(script)],
                         capture_output=True, text=True, timeout=300, env=env, cwd=folder)
    assert out.returncode == 0, out.stderr[-3000:]
    return [o[3:] for o in out.stdout.splitlines() if o.startswith('OK ')]
