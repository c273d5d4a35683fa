"""What does a FocusNet step cost, as a multiple of a plain one, by how the baseline is asked?

    python benchmarks/baseline_cost.py
    python benchmarks/baseline_cost.py --markdown results/cpu/baseline_cost.md

ResNet-18 at 64 and 128 pixels, through fastai's `fit`, in turns with plain training (A B A B ...): the median of the ratios with its range. Beside it the
limit, one plain step and the forward of the baseline alone, timed in the same turns: what a step cannot cost less than. Ways: as it is (eval mode under
`no_grad`), folded (and in inference mode: the default), folded with channels last, in bfloat16, compiled; for a learner that trains in bfloat16 itself; and
remembered: its logits are looked up in a file that earlier epochs filled.
The exit status is 1 if the cheapest way costs more than `--most`.
"""
import argparse, os, sys, tempfile, warnings
warnings.filterwarnings('ignore')

def args():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--sizes', type=int, nargs='*', default=[64, 128], help='pixels (default 64 128)')
    p.add_argument('--bs', type=int, default=16, help='images a batch (default 16)')
    p.add_argument('--rounds', type=int, default=7, help='turns of each (default 7)')
    p.add_argument('--steps', type=int, default=3, help='steps of a turn (default 3)')
    p.add_argument('--threads', type=int, default=1, help='CPU threads (default 1)')
    p.add_argument('--ways', nargs='*', help='some of: as it is, folded, channels last, bf16, compiled, "bf16, compiled", all in bf16, remembered')
    p.add_argument('--most', type=float, default=1.15, help='required cost of the cheapest way (default 1.15)')
    p.add_argument('--markdown', help='also write the table to this file')
    return p.parse_args()

ways = {'as it is': dict(fold=False), 'folded': {}, 'channels last': dict(channels_last=True), 'bf16': dict(precision='bf16', channels_last=True),
        'compiled': dict(compile=True), 'bf16, compiled': dict(precision='bf16', channels_last=True, compile=True), 'all in bf16': {}, 'remembered': {}}

def main():
    a = args()
    import pandas as pd, torch
    from contextlib import ExitStack
    from fastai.vision.all import resnet18
    from focusnet_fastai.focusnet import FocusNetCallback
    from focusnet_fastai.precision import in_turns, ratio
    from focusnet_fastai.reference import Baseline
    from focusnet_fastai.frozen import FrozenNetwork
    from focusnet_fastai.remembered import RememberedBaseline
    from common import learner, seconds, times, write_table
    torch.set_num_threads(a.threads)
    net = lambda: resnet18(num_classes=10)
    rows, best = {}, {}
    for size in a.sizes:
        for way in a.ways or ways:
            half = 'bf16' if way == 'all in bf16' else None
            plain, focus = [learner(net, size, a.bs, a.steps).to_precision(half) for _ in range(2)]
            kept = tempfile.TemporaryDirectory()
            base = RememberedBaseline(net(), folder=kept.name) if way == 'remembered' else Baseline(net(), **ways[way])
            focus.add_cb(FocusNetCallback(base))
            frozen, x = FrozenNetwork(net()).faster(**ways[way]), torch.randn(a.bs, 3, size, size)
            if half: frozen.to(memory_format=torch.channels_last)
            def forward():
                with torch.autocast('cpu', torch.bfloat16, enabled=half is not None):
                    for _ in range(a.steps if way != 'remembered' else 0): frozen(x)
            with ExitStack() as stack:
                for l in (plain, focus): stack.enter_context(l.no_bar()); stack.enter_context(l.no_logging())
                forward(); seconds(plain); seconds(focus)
                clocks = [[seconds(plain), seconds(focus), in_turns([forward], 1, torch.device('cpu'))[0][0]] for _ in range(a.rounds+1)][1:]
            p, f, w = zip(*clocks)
            best[size] = min(best.get(size, 9), ratio(f, p))
            rows[f'{size} px, {way}'] = {'step / plain step': times(f, p), 'limit': f'{1+ratio(w, p):.2f}'}
            print(size, way, rows[f'{size} px, {way}'], flush=True)
    about = (f"ResNet-18, {a.bs} a batch, CPU ({torch.backends.cpu.get_cpu_capability()}), {a.threads} thread(s), torch {torch.__version__}, "
             f"{a.rounds} rounds of {a.steps} steps, load {os.getloadavg()[0]:.1f}. Limit: one plain step and the baseline's forward alone.")
    print('\n' + write_table(a.markdown, pd.DataFrame(rows).T, about))
    bad = [f'{k} px: {v:.2f}' for k, v in best.items() if v > a.most]
    sys.exit(f"No way costs {a.most} or less at {', '.join(bad)}" if bad else 0)

if __name__ == '__main__': main()
