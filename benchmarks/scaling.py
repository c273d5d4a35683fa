"""How do images a second and memory grow with the number of images, of classes, and of processes? And where does what stop fitting?

    python benchmarks/scaling.py
    python benchmarks/scaling.py --images 1000 10000 --classes 10 1000 --markdown results/cpu/scaling.md
    python benchmarks/scaling.py --images --classes --processes     # the arithmetic alone

Images of noise in memory, a thin ResNet at 32 pixels: plain training, FocusNet, and FocusNet with remembered logits, each in a process of its own, whose
peak memory is shown. Several processes train with torchrun on gloo, a part of each batch each. Sizes of memory banks and of maps of all classes, and how long an
epoch of ImageNet takes on 8 GPUs, are computed.
"""
import argparse, json, os, subprocess, sys, warnings
warnings.filterwarnings('ignore')

def args():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--images', type=int, nargs='*', default=[1000, 10_000, 100_000, 1_000_000], help='training images, with 10 classes')
    p.add_argument('--classes', type=int, nargs='*', default=[10, 100, 1000, 10_000], help='classes, with 10,000 images')
    p.add_argument('--processes', type=int, nargs='*', default=[1, 2], help='processes, with 10,000 images')
    p.add_argument('--steps', type=int, default=20, help='steps that are timed (default 20)')
    p.add_argument('--bs', type=int, default=64, help='images a batch (default 64)')
    p.add_argument('--markdown', help='also write the tables to this file')
    p.add_argument('--one', help=argparse.SUPPRESS)
    return p.parse_args()

def one(job):
    "Train in this process; images a second and peak memory as JSON"
    import torch, time, resource
    from fastai.vision.all import Learner, SGD, CancelEpochException, Callback, rank_distrib, set_seed
    from focusnet_fastai.focusnet import FocusNetCallback
    from focusnet_fastai.lab.distributed import on_all_devices, split_batches
    from focusnet_fastai.models import thin_resnet
    from focusnet_fastai.reference import Baseline
    from focusnet_fastai.remembered import RememberedBaseline
    from common import Clock, TrainOnly, noise_dls
    torch.set_num_threads(1)
    set_seed(0)

    class Few(Callback):
        order = 110
        def after_batch(self):
            if self.iter == job['steps']: raise CancelEpochException()

    dls = split_batches(noise_dls(job['images'], 32, job['bs'], classes=job['classes']))
    learn = Learner(dls, thin_resnet(job['classes']), opt_func=SGD, lr=1e-3, cbs=[TrainOnly(), Clock(), Few()])
    base = dict(plain=None, FocusNet=Baseline, remembered=RememberedBaseline)[job['method']]
    warnings.simplefilter('ignore')
    with learn.no_bar(), learn.no_logging(), on_all_devices(learn):
        learn.fit(1, cbs=FocusNetCallback(base(thin_resnet(job['classes']))) if base else None)
    ends = learn.clock.ends
    if not rank_distrib():
        print(json.dumps(dict(rate=job['bs']*(len(ends)-1)/(ends[-1]-ends[0]), mb=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/1024)))

def measured(processes=1, **job):
    launch = [sys.executable] if processes == 1 else [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node', str(processes)]
    env = dict(os.environ, OMP_NUM_THREADS='1', ACCELERATE_USE_CPU='true', CUDA_VISIBLE_DEVICES='')
    out = subprocess.run([*launch, __file__, '--one', json.dumps(job)], capture_output=True, text=True, env=env)
    lines = [o for o in out.stdout.splitlines() if o.startswith('{')]
    if not lines: return dict(rate=float('nan'), mb=float('nan'), error=(out.stderr.strip().splitlines() or ['killed'])[-1])
    return json.loads(lines[-1])

def gb(b): return f'{b/1e9:,.2f} GB' if b >= 1e9 else f'{b/1e6:,.1f} MB'

def banks():
    "What is kept by image and by class, and all maps of a batch"
    import pandas as pd
    from common import write_table
    from focusnet_fastai.remembered import store_bytes
    sizes = {f'{n:,} images, {c:,} classes': {'logits whole': gb(store_bytes(n, c)), 'logits, k = 10': gb(store_bytes(n, c, 10)) if c > 10 else '',
             '10 views, k = 10': gb(store_bytes(10*n, c, 10)) if c > 10 else '', 'class means C x C, float32': gb(4*c*c),
             'maps of all classes, 64 images of 7 x 7': gb(4*64*c*49), 'the same enlarged to 224 x 224': gb(4*64*c*224**2)}
             for n, c in ((50_000, 10), (50_000, 100), (1_281_167, 1000), (1_281_167, 10_000))}
    return write_table(None, pd.DataFrame(sizes).T, 'Computed, not measured. A store of logits that has no room in memory (or, with `folder=`, on the disk) is refused with both numbers before it is '
                       'made, and so are maps; each process of a distributed training keeps a store of its own.')

def epochs():
    "ImageNet on 8 GPUs, by the speed of one"
    import pandas as pd
    from common import write_table
    n, gpus = 1_281_167, 8
    def time(rate, cost): return f'{cost*n/(gpus*rate)/60:.1f} min'
    rows = {f'{r:,} images/s a GPU': {'plain': time(r, 1), 'FocusNet, baseline asked (4/3)': time(r, 4/3), 'baseline in half precision (7/6)': time(r, 7/6), 'logits remembered (1.03)': time(r, 1.03),
            '90 epochs FocusNet, and 90 of the baseline before': f'{(90*4/3+90)*n/(gpus*r)/3600:.1f} h'} for r in (400, 1000, 2500)}
    return write_table(None, pd.DataFrame(rows).T, f'An epoch of {n:,} images takes images/(GPUs x r) seconds, r being the images a second of plain training on one GPU, times the cost of the step: with a '
                       'baseline one forward more, 4/3, where forward and backward are 1 and 2. Measured costs of a step stand in `step_cost.md` and `baseline_cost.md`.')

def asked(gpus=8):
    "How often a process that keeps its own logits still asks"
    import pandas as pd
    from common import write_table
    rows = {f'epoch {e}': {f'{g} process{"es" if g > 1 else ""}': f'{((g-1)/g)**(e-1):.0%}' for g in (1, 2, gpus)} for e in (1, 2, 4, 8, 16, 32)}
    return write_table(None, pd.DataFrame(rows).T, 'Part of its images of an epoch about which a process still asks the baseline: each epoch deals the images anew, so of P processes one has met an image in e epochs '
                       'with probability 1-(1-1/P)^e. All together it asks about each image once, in P epochs\' worth of its share.')

def pictures():
    "Photographs kept decoded"
    import pandas as pd
    from common import write_table
    from focusnet_fastai.data.picture_file import stored_side, stored_size
    def size(px, scale): w, h = stored_size(500, 375, stored_side(px, scale)); return 3*w*h
    rows = {f'{px} px, crops of at least {scale:.0%}': {'a picture': gb(size(px, scale)), 'Imagewoof, 12,954': gb(12_954*size(px, scale)), 'ImageNet, 1,281,167': gb(1_281_167*size(px, scale)), 'in 10 GB': f'{int(10e9/size(px, scale)):,}'}
            for px, scale in ((128, .35), (224, .35), (224, .08))}
    return write_table(None, pd.DataFrame(rows).T, 'Photographs of 500 x 375 pixels as they are kept (`cache=`); the file is bounded by 10 GB and by half of what is free on its disk, and what does not fit is decoded each time.')

def arithmetic():
    "What can be computed"
    return '\n'.join(['## What is kept\n', banks(), '## ImageNet on 8 GPUs\n', epochs(), asked(), '## Photographs\n', pictures(), '## Several machines\n',
        'The same script runs with one process, with several on one machine, and on several machines; `nbs/lab/01_distributed.ipynb` has it, with the commands for `torchrun`, `accelerate` and Slurm. What the tests '
        'rehearse with real processes over Gloo (`tests/lab/test_distributed.py`): two processes on one machine by `torchrun` and by `accelerate`, killed and continued; two machines, that is two `torchrun --nnodes 2` '
        'that find each other by c10d, here on one host; remembered logits and fixed views in both.\n'])

def main():
    a = args()
    if a.one: return one(json.loads(a.one))
    import pandas as pd, torch
    from common import write_table
    from focusnet_fastai.remembered import store_bytes
    rows = {}
    grid = [(f'{n:,} images', dict(images=n, classes=10)) for n in a.images] + [(f'{c:,} classes', dict(images=10_000, classes=c)) for c in a.classes]
    grid += [(f'{p} processes', dict(images=10_000, classes=10, processes=p)) for p in a.processes if p > 1]
    for name, job in grid:
        rows[name] = {}
        for method in ('plain', 'FocusNet', 'remembered'):
            r = measured(method=method, bs=a.bs, steps=min(a.steps, job['images']//a.bs-1), **job)
            rows[name] |= {f'{method}, images/s': f"{r['rate']:,.0f}", f'{method}, MB': f"{r['mb']:,.0f}"}
            if 'error' in r: print(name, method, r['error'])
        print(name, rows[name], flush=True)
    about = f"Thin ResNet, 32 px, {a.bs} a batch, divided among the processes, torch {torch.__version__}, one thread, load {os.getloadavg()[0]:.1f}; memory is the peak of the (first) process."
    text = (write_table(None, pd.DataFrame(rows).T, about) if rows else '')
    text += '\n' + arithmetic()
    print('\n' + text)
    if a.markdown: open(a.markdown, 'w').write(text)

if __name__ == '__main__': main()
