"""How many CIFAR-10 images a second come out of the loaders? `cifar10_dls`, in memory, against fastai's plain loaders over the same files.

    python benchmarks/loader_speed.py

Both give training batches with random crops of the image padded by 4, flips and `Normalize`, on the same CPU cores. The plain loaders have a worker
process a core (and their first batches are not timed, since the workers have to start); the loader in memory has `--threads`, by default a single one,
because torch's threads wait for each other, which costs more than it gains where anything else runs. They take turns (A B A B ...); the medians and
their ratio are printed. The exit status is 1 if the ratio is below `--min_ratio`.
"""
import argparse, os, statistics, sys, time

def args():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--bs', type=int, default=128, help='images a batch (default 128)')
    p.add_argument('--cores', type=int, default=2, help='CPU cores, and worker processes of the plain loaders (default 2)')
    p.add_argument('--threads', type=int, default=1, help='threads of the loader in memory (default 1)')
    p.add_argument('--rounds', type=int, default=2, help='turns of each (default 2)')
    p.add_argument('--images', type=int, default=10_000, help='images of a turn of the plain loaders; the others run a whole epoch (default 10000)')
    p.add_argument('--min_ratio', type=float, default=10., help='required ratio (default 10)')
    return p.parse_args()

def plain_dls(bs, workers):
    "fastai's loaders, item by item"
    from fastai.vision.all import (CropPad, FlipItem, GrandparentSplitter, ImageBlock, CategoryBlock, DataBlock, Normalize, RandomCrop, URLs, cifar_stats,
                                   get_image_files, parent_label, untar_data)
    block = DataBlock((ImageBlock, CategoryBlock), get_items=get_image_files, splitter=GrandparentSplitter('train', 'test'), get_y=parent_label,
                      item_tfms=[CropPad(40), RandomCrop(32), FlipItem()], batch_tfms=Normalize.from_stats(*cifar_stats))
    return block.dataloaders(untar_data(URLs.CIFAR), bs=bs, num_workers=workers, device='cpu')

def rate(dl, n, warm=20):
    "Images a second, of about `n` images after `warm` batches"
    seen, start = 0, None
    for i, (x, _) in enumerate(dl):
        if i == warm: start = time.perf_counter()
        elif i > warm: seen += len(x)
        if seen >= n: break
    return seen/(time.perf_counter() - start)

def main():
    a = args()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:a.cores])  # the workers inherit it
    import torch
    from focusnet_fastai.data.small import cifar10_dls
    torch.set_num_threads(a.threads)
    held, plain = cifar10_dls(bs=a.bs, device='cpu').train, plain_dls(a.bs, a.cores).train
    x, y = held.one_batch(), plain.one_batch()
    assert x[0].shape == y[0].shape == (a.bs, 3, 32, 32) and x[0].dtype == y[0].dtype == torch.float32
    rates = {'in memory': [], 'plain': []}
    for _ in range(a.rounds):
        for name, dl, n in (('in memory', held, 50_000), ('plain', plain, a.images)):
            rates[name].append(rate(dl, n))
            print(f'{name:10} {rates[name][-1]:10,.0f} images/s', flush=True)
    fast, slow = (statistics.median(o) for o in rates.values())
    print(f'medians: {fast:,.0f} against {slow:,.0f} images/s, ratio {fast/slow:.1f} ({len(os.sched_getaffinity(0))} cores, load {os.getloadavg()[0]:.1f})')
    sys.exit(fast/slow < a.min_ratio)

if __name__ == '__main__': main()
