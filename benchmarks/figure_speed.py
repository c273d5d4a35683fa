"""How long Figures 1 and 2 and a contrast figure take: three images of 128 x 128 pixels, a ResNet-18 of ten classes, on the CPU.

    python benchmarks/figure_speed.py [--threads 1] [--repeats 5] [--classes 10]

Each time is the median of the repeats, from the call of the function to the bytes of a PNG at 100 dots an inch; the first call, which loads fonts, is not counted."""
import argparse, io, statistics, time, warnings
warnings.filterwarnings('ignore')
import torch
from fastai.vision.all import Learner, resnet18
from focusnet_fastai.data.memory import InMemoryLoaders
from focusnet_fastai.see.architecture import show_architecture
from focusnet_fastai.see.confusion import show_confusion
from focusnet_fastai.see.contrast import show_contrast
from focusnet_fastai.see.focus import show_focus


def learners(classes):
    "Two networks with random weights; how long a figure takes does not depend on what they have learned"
    torch.manual_seed(0)
    x, y = torch.rand(24, 3, 128, 128), torch.arange(24) % classes
    dls = InMemoryLoaders.from_tensors((x, y), (x, y), [f'class {i}' for i in range(classes)], bs=8)
    return [Learner(dls, resnet18(num_classes=classes)) for _ in range(2)]


def seconds(draw, repeats):
    "The median time of a figure and its PNG"
    times = []
    for _ in range(repeats+1):
        start = time.perf_counter()
        draw().savefig(io.BytesIO(), format='png', dpi=100)
        times.append(time.perf_counter()-start)
    return statistics.median(times[1:])


if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--threads', type=int, default=1)
    p.add_argument('--repeats', type=int, default=5)
    p.add_argument('--classes', type=int, default=10)
    args = p.parse_args()
    torch.set_num_threads(args.threads)
    base, learn = learners(args.classes)
    items = [0, 1, 2]
    figures = {'Figure 1 (a)': lambda: show_architecture(learn, base, 0), 'Figure 1 (b, c), three images': lambda: show_focus(learn, base, items),
               'Figure 2, three scenes': lambda: show_confusion(base, items), 'Figure 2, three scenes, zoom=3': lambda: show_confusion(base, items, zoom=3),
               'Contrast maps, three images': lambda: show_contrast(learn, base, items)}
    for name, draw in figures.items(): print(f'{name:36} {seconds(draw, args.repeats):.2f} s', flush=True)
