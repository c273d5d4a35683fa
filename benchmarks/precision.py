"""How many images a second does a network train in float32, with channels last, and in half precision with channels last?

    python benchmarks/precision.py
    python benchmarks/precision.py --markdown results/cpu/precision.md
    python benchmarks/precision.py --device cuda --rounds 5 --steps 20 --markdown results/gpu/precision.md

Plain training and FocusNet (its baseline in the same precision), through fastai's `fit`, loaders and all, in turns (A B A B ...); the
medians of images a second, and the median of the ratios to float32 with its range. A GPU also has float16, larger batches, and its
peak memory in the table. The exit status is 1 if bfloat16 gains less than `--least` for plain training of ResNet-18.
"""
import argparse, os, sys, warnings
from functools import partial
warnings.filterwarnings('ignore')

def args():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--rounds', type=int, default=5, help='turns of each (default 5)')
    p.add_argument('--steps', type=int, default=3, help='steps of a turn (default 3)')
    p.add_argument('--threads', type=int, default=1, help='CPU threads (default 1)')
    p.add_argument('--device', default='cpu', help='cpu or cuda (default cpu)')
    p.add_argument('--least', type=float, default=1.7, help='required gain of ResNet-18 at 128 pixels (default 1.7)')
    p.add_argument('--markdown', help='also write the table to this file')
    return p.parse_args()

def networks(cuda):
    "Name, network, pixels, images a batch"
    from fastai.vision.all import resnet18
    from focusnet_fastai.models import small_resnet18, thin_resnet
    standard, modified = partial(resnet18, num_classes=10), partial(small_resnet18, 10)
    if cuda: return (('ResNet-18, 128 px', standard, 128, 64), ('ResNet-18, 224 px', standard, 224, 64),
                     ('modified ResNet-18, 32 px', modified, 32, 128))
    return (('ResNet-18, 128 px', standard, 128, 16), ('ResNet-18, 64 px', standard, 64, 16),
            ('thin ResNet, 32 px', lambda: thin_resnet(10, width=16), 32, 128))

def peaks(learners):
    "Megabytes of GPU memory that an epoch of each learner needs beyond what lies there, networks and images of all"
    import torch
    from common import seconds
    res = []
    for l in learners:
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        with l.no_bar(), l.no_logging(): seconds(l)
        res.append((torch.cuda.max_memory_allocated()-before)/1e6)
    return res

def main():
    a = args()
    import pandas as pd, torch
    from focusnet_fastai.focusnet import FocusNetCallback
    from common import epochs_in_turns, learner, rate, ratio, times, write_table
    torch.set_num_threads(a.threads)
    cuda = a.device != 'cpu'
    settings = dict(float32=(None, False), channels_last=(None, True), bf16=('bf16', True), **({'fp16': ('fp16', True)} if cuda else {}))
    rows, gains = {}, {}
    for name, net, size, bs in networks(cuda):
        for method in ('plain', 'FocusNet'):
            ls = [learner(net, size, bs, a.steps, device=a.device).to_precision(*o) for o in settings.values()]
            for l in ls if method == 'FocusNet' else []: l.add_cb(FocusNetCallback(net()))
            ts = dict(zip(settings, epochs_in_turns(ls, a.rounds)))
            rows[f'{name}, {bs} a batch, {method}'] = {f'{k}, images/s': f'{rate(v, bs*a.steps):,.0f}' for k, v in ts.items()} | {
                f'{k} / float32': times(ts['float32'], v) for k, v in ts.items() if k != 'float32'} | (
                {f'{k}, MB': f'{v:,.0f}' for k, v in zip(settings, peaks(ls))} if cuda else {})
            gains[name, method] = ratio(ts['float32'], ts['bf16'])
            print(name, method, rows[f'{name}, {bs} a batch, {method}'], flush=True)
    where = torch.cuda.get_device_name() if cuda else f'CPU ({torch.backends.cpu.get_cpu_capability()})'
    about = f"{where}, {a.threads} thread(s), torch {torch.__version__}, {a.rounds} rounds of {a.steps} steps, load {os.getloadavg()[0]:.1f}"
    print('\n' + write_table(a.markdown, pd.DataFrame(rows).T, about))
    sys.exit(gains['ResNet-18, 128 px', 'plain'] < a.least)

if __name__ == '__main__': main()
