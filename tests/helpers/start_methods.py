"""Loaders with worker processes, started in every way that Python knows: `python start_methods.py FOLDER METHOD ...`

Prints a line for each loader whose batches differ from those without workers, or which cannot be iterated, and `done` at the end."""
import multiprocessing, sys, warnings
warnings.filterwarnings('ignore')
import torch
torch.set_num_threads(1)
from fastai.vision.all import Learner, Normalize, imagenet_stats, load_learner, nn
from focusnet_fastai.data.folder import folder_dls
from focusnet_fastai.data.memory import CropBatch, FlipBatch, InMemoryLoaders


def loaders(path):
    "The package's own kinds, without anything random where batches are compared"
    photos = folder_dls(path, size=16, bs=4, num_workers=0, device='cpu')
    learn = Learner(photos, nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2)))
    learn.export(path.parent/'learner.pkl')
    x, y = torch.arange(8*3*16*16).reshape(8, 3, 16, 16) % 256, torch.arange(8) % 2
    tfms = [CropBatch(pad=2), FlipBatch(), Normalize.from_stats(*imagenet_stats)]
    memory = InMemoryLoaders.from_tensors((x.byte(), y), (x.byte(), y), 'ab', bs=4, batch_tfms=tfms, device='cpu')
    yield 'photos of validation', photos.valid
    yield 'photos, training', photos.train
    yield 'in memory', memory.valid
    yield 'in memory, training', memory.train
    yield 'exported learner', load_learner(path.parent/'learner.pkl').dls.test_dl(list(photos.valid_ds.items))


if __name__ == '__main__':
    from pathlib import Path
    multiprocessing.set_forkserver_preload(['focusnet_fastai.data.folder', 'fastai.vision.all'])
    kinds = list(loaders(Path(sys.argv[1])))
    for method in sys.argv[2:]:
        multiprocessing.set_start_method(method, force=True)
        for name, dl in kinds:
            if method == 'spawn' and name in ('photos of validation', 'in memory'): continue  # each worker imports everything anew
            want = [b[0] for b in dl]
            try: got = [b[0] for b in dl.new(num_workers=1)]
            except Exception as e: print(f'{method}: {name}: {type(e).__name__}: {e}'); continue
            if len(got) != len(want) or 'training' not in name and not all(map(torch.equal, got, want)): print(f'{method}: {name}: other batches')
    print('done')
