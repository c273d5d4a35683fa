"""What does a training step of each method cost, as a multiple of plain cross-entropy? Beside it: what its forwards and backwards predict.

    python benchmarks/step_cost.py                   # all methods
    python benchmarks/step_cost.py --methods kd byot # some

Each method trains a ResNet-18 on real digits of 64 pixels through fastai's `fit`, loaders and all, in turns with plain training (A B A B ...); the median
of the ratios is printed with its range. The prediction counts a forward as 1 and a backward as 2, an image in several views several times, and extra parts
by their FLOPs (convolutions and linear layers). What costs more than 15 % above it needs an explanation, which stands beside it here; the exit status is 1
where there is none. Memories (`focus_class`, `focus_memory`) may cost 5 % more than plain training.
"""
import argparse, statistics, sys, warnings
warnings.filterwarnings('ignore')

def args():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--methods', nargs='*', help='names, default all')
    p.add_argument('--bs', type=int, default=16, help='images a batch (default 16)')
    p.add_argument('--steps', type=int, default=4, help='steps of a turn that are timed (default 4)')
    p.add_argument('--rounds', type=int, default=5, help='turns of each (default 5)')
    p.add_argument('--size', type=int, default=64, help='pixels (default 64)')
    p.add_argument('--threads', type=int, default=1, help='CPU threads (default 1)')
    p.add_argument('--device', default='cpu', help='cpu or cuda (default cpu)')
    p.add_argument('--markdown', help='also write the table to this file')
    return p.parse_args()

# images that pass forward and backward, and that pass forward only, for each image of the plain batch
passes = dict(cs_kd=(1, 1), ddgsd=(2, 0), sla_sd=(4, 0), focus_ema=(1, 1)) # and with a baseline (1, 1)
goals = dict(focus_class=1.05, focus_memory=1.05) # what the network said itself must cost next to nothing: the most it may cost
explained = {
    'frskd': 'the self-teacher is many small layers: depthwise convolutions and BatchNorm cost time, but hardly count as FLOPs; 2.2 times the bytes, 3.4 times the operators (step_counts.md)',
    'byot': 'the exits are separable convolutions with BatchNorm, which cost time, but hardly count as FLOPs; 1.25 times the bytes (step_counts.md)',
    'cs_kd': 'the partners are loaded too, and their forward in training mode updates BatchNorm'}
explained['one'] = 'the copies of the last stage hold most parameters, whose update counts in small batches: 1.54 at 48 images a batch'
explained |= {o: explained['frskd'] for o in ('frskd_f', 'focus_frskd')}

def main():
    a = args()
    import torch, pandas as pd
    from fastai.vision.all import Learner, SGD, resnet18, set_seed
    from focusnet_fastai.data.memory import InMemoryLoaders
    from focusnet_fastai.data.digits import digits_dls
    from focusnet_fastai.methods.registry import apply_method, methods, needs_baseline
    from focusnet_fastai.methods.stages import training_complexity
    from focusnet_fastai.methods.wrap import WrappedNetwork
    from focusnet_fastai.models import complexity
    from common import Clock, seconds, TrainOnly
    torch.set_num_threads(a.threads)
    ds = digits_dls(n_train=a.bs*(a.steps+1), size=a.size).train_ds
    both = (ds.x.float().expand(-1, 3, -1, -1).contiguous(), ds.y)
    loaders = lambda: InMemoryLoaders.from_tensors(both, both, ds.vocab, bs=a.bs, device=a.device)

    def learner():
        set_seed(0)
        return Learner(loaders(), resnet18(num_classes=10), opt_func=SGD, lr=1e-3, cbs=[TrainOnly(), Clock()])

    def trained(name):
        learn, cb = apply_method(methods[name], learner(), learner() if needs_baseline(methods[name]) else None)
        if cb is not None: learn.add_cb(cb)
        return learn

    def predicted(name, learn):
        both_ways, forward = passes.get(name, (1, needs_baseline(methods[name])))
        extra = 1.
        if isinstance(learn.model, WrappedNetwork) and name not in passes:
            extra = training_complexity(learn.model, a.size).flops/complexity(learn.model.net, a.size).flops
        return (3*both_ways*extra + forward)/3

    plain, rows, bad = learner(), {}, []
    quiet = lambda l: (l.no_bar(), l.no_logging())
    from contextlib import ExitStack
    for name in a.methods or [o for o in methods if o != 'baseline']:
        learn = trained(name)
        with ExitStack() as stack:
            for l in (plain, learn):
                for c in quiet(l): stack.enter_context(c)
            for l in (plain, learn): seconds(l)  # warm-up
            ratios = [1/(seconds(plain)/seconds(learn)) for _ in range(a.rounds)]
        ratio, want = statistics.median(ratios), predicted(name, learn)
        over = ratio > goals.get(name, 1.15*want)
        if over and name not in explained: bad.append(name)
        rows[name] = {'predicted': f'{want:.2f}', 'measured': f'{ratio:.2f}', 'range': f'{min(ratios):.2f} to {max(ratios):.2f}',
                      'measured/predicted': f'{ratio/want:.2f}', 'why more': explained.get(name, 'not explained') if over else ''}
        print(f"{name:18} predicted {want:.2f}  measured {ratio:.2f} ({min(ratios):.2f} to {max(ratios):.2f})  {rows[name]['why more']}", flush=True)
    df = pd.DataFrame(rows).T
    if a.markdown:
        lines = [['method', *df.columns], ['---']*(1+len(df.columns)), *([k, *v] for k, v in zip(df.index, df.values))]
        open(a.markdown, 'w').write('\n'.join('| ' + ' | '.join(o) + ' |' for o in lines) + '\n')
    print(f"\nResNet-18 at {a.size} pixels, {a.bs} images a batch, {a.device}, {a.threads} thread(s), torch {torch.__version__}, {a.rounds} rounds of {a.steps} steps")
    if bad: sys.exit(f"More than 15 % (memories: 5 %) above the prediction without an explanation: {', '.join(bad)}")

if __name__ == '__main__': main()
