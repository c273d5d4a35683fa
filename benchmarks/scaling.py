"""How do images a second and memory grow with the number of images, of classes, and of processes? And where does what stop fitting?

    python benchmarks/scaling.py
    python benchmarks/scaling.py --images 1000 10000 --classes 10 1000 --markdown results/cpu/scaling.md

Images of noise in memory, a thin ResNet at 32 pixels: plain training, FocusNet, and FocusNet with remembered logits, each in a process of its own, whose
peak memory is shown. Several processes train with accelerate's launcher on gloo, a part of each batch each. Sizes of memory banks and of maps of all classes are computed.
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
    launch = [sys.executable] if processes == 1 else [sys.executable, '-m', 'accelerate.commands.launch', '--cpu', '--num_processes', str(processes), '--main_process_port', '29551']
    env = dict(os.environ, OMP_NUM_THREADS='1', ACCELERATE_USE_CPU='true')
    out = subprocess.run([*launch, __file__, '--one', json.dumps(job)], capture_output=True, text=True, env=env)
    lines = [o for o in out.stdout.splitlines() if o.startswith('{')]
    if not lines: return dict(rate=float('nan'), mb=float('nan'), error=(out.stderr.strip().splitlines() or ['killed'])[-1])
    return json.loads(lines[-1])

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
    about = f"Thin ResNet, 32 px, {a.bs} a batch a process, torch {torch.__version__}, one thread, load {os.getloadavg()[0]:.1f}; memory is the peak of the (first) process."
    text = write_table(None, pd.DataFrame(rows).T, about)
    gb = lambda b: f'{b/1e9:,.2f} GB' if b >= 1e9 else f'{b/1e6:,.1f} MB'
    sizes = {f'{n:,} images, {c:,} classes': {'logits whole': gb(store_bytes(n, c)), 'logits, k = 10': gb(store_bytes(n, c, 10)) if c > 10 else '',
             'class means C x C, float32': gb(4*c*c), 'maps of all classes, 64 images of 7 x 7': gb(4*64*c*49)}
             for n, c in ((50_000, 10), (50_000, 100), (1_281_167, 1000), (1_281_167, 10_000))}
    text += '\n' + write_table(None, pd.DataFrame(sizes).T, 'Computed, not measured.')
    print('\n' + text)
    if a.markdown: open(a.markdown, 'w').write(text)

if __name__ == '__main__': main()
