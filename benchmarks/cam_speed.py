"""How fast are the maps of all classes of a batch? `class_maps` (one forward) against torchcam asked class by class.

    python benchmarks/cam_speed.py

Both run in one process, in turns (A B A B ...); the medians and their ratio are printed. torchcam is asked as its README shows: for each class
a forward, then the map of that class. Its extractor can also answer all classes after a single forward; that time is printed too.
The exit status is 1 if the ratio is below `--min_ratio`.
"""
import argparse, statistics, sys, time
import torch
from torchvision.models import resnet18
from torchcam.methods import CAM
from focusnet_fastai.see.cam import class_maps

def args():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--batch', type=int, default=16, help='images (default 16)')
    p.add_argument('--classes', type=int, default=10, help='classes (default 10)')
    p.add_argument('--size', type=int, default=128, help='pixels (default 128)')
    p.add_argument('--rounds', type=int, default=7, help='turns of each (default 7)')
    p.add_argument('--threads', type=int, default=2, help='CPU threads (default 2)')
    p.add_argument('--device', default='cpu', help='cpu or cuda (default cpu)')
    p.add_argument('--min_ratio', type=float, default=8., help='required ratio (default 8)')
    return p.parse_args()

@torch.no_grad()
def class_by_class(model, xb, cam, n):
    "A forward and a map for each class"
    res = []
    for c in range(n):
        model(xb)
        res.append(cam(c, normalized=False)[0])
    return torch.stack(res, 1)

@torch.no_grad()
def one_forward(model, xb, cam, n):
    "One forward, then a map for each class"
    model(xb)
    return torch.stack([cam(c, normalized=False)[0] for c in range(n)], 1)

def timed(f, device):
    if device!='cpu': torch.cuda.synchronize()
    t = time.perf_counter()
    res = f()
    if device!='cpu': torch.cuda.synchronize()
    return time.perf_counter()-t, res

def main():
    a = args()
    torch.set_num_threads(a.threads)
    torch.manual_seed(0)
    model = resnet18(num_classes=a.classes).eval().to(a.device)
    xb = torch.randn(a.batch, 3, a.size, a.size, device=a.device)
    with CAM(model, 'layer4', 'fc') as cam:
        ways = {'class_maps': lambda: class_maps(model, xb),
                'torchcam, class by class': lambda: class_by_class(model, xb, cam, a.classes),
                'torchcam, one forward': lambda: one_forward(model, xb, cam, a.classes)}
        res = {k:f() for k,f in ways.items()}                           # warm up, and check that all give the same maps
        for m in res.values(): torch.testing.assert_close(m, res['class_maps'], rtol=1e-3, atol=1e-4)
        times = {k:[] for k in ways}
        for _ in range(a.rounds):
            for k,f in ways.items(): times[k].append(timed(f, a.device)[0])
    print(f"resnet18, {a.classes} classes, batch {a.batch}, {a.size} pixels, {a.device}, {a.threads} threads, torch {torch.__version__}")
    med = {k:statistics.median(v) for k,v in times.items()}
    for k,v in times.items(): print(f"{k:26s} median {med[k]*1e3:8.1f} ms   (min {min(v)*1e3:.1f}, max {max(v)*1e3:.1f}, n={len(v)})")
    ratio = med['torchcam, class by class']/med['class_maps']
    print(f"ratio, class by class      {ratio:.2f} (required: {a.min_ratio:g})")
    print(f"ratio, one forward         {med['torchcam, one forward']/med['class_maps']:.2f}")
    return int(ratio<a.min_ratio)

if __name__=='__main__': sys.exit(main())
