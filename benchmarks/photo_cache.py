"""How many photographs a second come out of the loaders, against fastai's own `ImageDataLoaders.from_folder` over the same files?

    python benchmarks/photo_cache.py                    # photographs drawn here: 160 pixels, and 12 megapixels
    python benchmarks/photo_cache.py --folder MY_PHOTOS # one folder a class

Both crop at random to `--size`, flip and normalise, with a worker process a core, and nothing is trained. First epochs (nothing is kept yet) and later ones
take turns (A B A B ...); an epoch is timed whole, start of the workers included. The exit status is 1 if later epochs are below `--least` times fastai's
(3 for 160 pixels, 10 for 12 megapixels), or the first one is slower.
"""
import argparse, os, shutil, statistics, sys, tempfile, time, warnings
from pathlib import Path
warnings.filterwarnings('ignore')

def args():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--folder', help='photographs of your own, one folder a class')
    p.add_argument('--size', type=int, default=128, help='pixels of the images (default 128)')
    p.add_argument('--bs', type=int, default=64, help='images a batch (default 64)')
    p.add_argument('--cores', type=int, default=2, help='CPU cores, and worker processes (default 2)')
    p.add_argument('--rounds', type=int, default=3, help='turns of each (default 3)')
    p.add_argument('--small', type=int, default=2000, help='photographs of 160 pixels (default 2000)')
    p.add_argument('--large', type=int, default=96, help='photographs of 12 megapixels (default 96)')
    p.add_argument('--least', type=float, nargs=2, default=[3, 10], help='required ratios (default 3 10)')
    p.add_argument('--markdown', help='also write the table to this file')
    return p.parse_args()

def draw(folder, n, size, quality=90):
    "Photographs of noise at many scales, about as hard to decode as real ones"
    import numpy as np
    from PIL import Image
    rng, w, h = np.random.RandomState(0), *size
    layers = [np.asarray(Image.fromarray(rng.randint(0, 256, (max(2, h//s), max(2, w//s), 3), dtype=np.uint8)).resize((w, h), Image.Resampling.BICUBIC), dtype=np.float32)
              for s in (h//2, h//8, 16, 4)]
    for i in range(n):
        d = folder/f'class{i%2}'
        d.mkdir(parents=True, exist_ok=True)
        a = sum(k*np.roll(o, rng.randint(h), rng.randint(2)) for k, o in zip((.4, .3, .2, .1), layers))
        Image.fromarray(a.clip(0, 255).astype(np.uint8)).save(d/f'{i}.jpg', quality=quality)
    return folder

def fastai_dls(folder, size, bs, workers):
    from fastai.vision.all import FlipItem, ImageDataLoaders, Normalize, RandomResizedCrop, imagenet_stats
    return ImageDataLoaders.from_folder(folder, valid_pct=.2, seed=0, item_tfms=[RandomResizedCrop(size, min_scale=.35), FlipItem()],
                                        batch_tfms=Normalize.from_stats(*imagenet_stats), bs=bs, num_workers=workers, device='cpu')

def rate(dl):
    "Images a second of one epoch"
    start = time.perf_counter()
    n = sum(len(b[0]) for b in dl)
    return n/(time.perf_counter() - start)

def measured(name, folder, a):
    from focusnet_fastai.data.folder import folder_dls
    from focusnet_fastai.data.photo_cache import cached_photos
    plain = fastai_dls(folder, a.size, a.bs, a.cores)
    with warnings.catch_warnings(action='ignore'): own = folder_dls(folder, a.size, a.bs, num_workers=a.cores, device='cpu')
    rates = {o: [] for o in ('fastai', 'uncached', 'first epoch', 'later epochs')}
    for r in range(a.rounds):
        with tempfile.TemporaryDirectory() as tmp:
            start = time.perf_counter()
            kept = cached_photos(own, tmp)
            opening = time.perf_counter()-start
            for k, dl in (('fastai', plain.train), ('uncached', own.train), ('first epoch', kept.train), ('later epochs', kept.train)): rates[k].append(rate(dl))
            mb = (Path(tmp)/'pictures.bytes').stat().st_size/1e6
    over = {k: statistics.median(x/y for x, y in zip(v, rates['fastai'])) for k, v in rates.items()}
    row = {f'{k}, images/s': f'{statistics.median(v):,.0f}' for k, v in rates.items()} | {f'{k} / fastai': f'{over[k]:.2f}' for k in ('uncached', 'first epoch', 'later epochs')}
    row |= {'once before, s': f'{opening:.1f}', 'photographs': f"{len(own.train_ds)+len(own.valid_ds):,}", 'kept, MB': f'{mb:,.0f}'}
    print(name, row, flush=True)
    return row, over

def main():
    a = args()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:a.cores])  # the workers inherit it
    import pandas as pd, torch
    from common import write_table
    torch.set_num_threads(1)
    rows, bad = {}, []
    with tempfile.TemporaryDirectory() as tmp:
        sets = {'your photographs': (Path(a.folder), a.least[0])} if a.folder else {
            '160 pixels': (lambda: draw(Path(tmp)/'small', a.small, (213, 160)), a.least[0]), '12 megapixels': (lambda: draw(Path(tmp)/'large', a.large, (4032, 3024)), a.least[1])}
        for name, (folder, least) in sets.items():
            rows[name], over = measured(name, folder() if callable(folder) else folder, a)
            if over['later epochs'] < least: bad.append(f"{name}: later epochs {over['later epochs']:.1f} < {least}")
            if over['first epoch'] < .95*over['uncached']: bad.append(f"{name}: the first epoch is slower than without")
    about = f"{a.size} pixels, {a.bs} a batch, {a.cores} cores, torch {torch.__version__}, {a.rounds} rounds, load {os.getloadavg()[0]:.1f}"
    print('\n' + write_table(a.markdown, pd.DataFrame(rows).T, about))
    sys.exit('; '.join(bad) or 0)

if __name__ == '__main__': main()
