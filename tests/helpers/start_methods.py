"""Loaders of every kind, whose worker processes are started in every way that Python knows: `start_methods.py FOLDER METHOD ...`

Prints a line for each loader whose batches differ from those without workers, or which cannot be iterated, and `done` at the end."""
import multiprocessing, sys, warnings
from pathlib import Path
warnings.filterwarnings('ignore')
import torch
torch.set_num_threads(1)
from fastai.vision.all import Learner, Normalize, imagenet_stats, load_learner, nn
from focusnet_fastai.data.folder import folder_dls
from focusnet_fastai.data.memory import CropBatch, FlipBatch, InMemoryLoaders
from focusnet_fastai.data.photo_cache import cached_photos
from focusnet_fastai.methods.groups import GroupedDL
from focusnet_fastai.methods.views import PartnersDL, RotationsDL


def loaders(path):
    "Those with training in their names draw at random"
    photos = folder_dls(path, size=16, bs=4, num_workers=0, device='cpu')
    learn = Learner(photos, nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2)))
    learn.export(path.parent/'learner.pkl')
    x, y = torch.arange(8*3*16*16).reshape(8, 3, 16, 16) % 256, torch.arange(8) % 2
    tfms = [CropBatch(pad=2), FlipBatch(), Normalize.from_stats(*imagenet_stats)]
    memory = InMemoryLoaders.from_tensors((x.byte(), y), (x.byte(), y), 'ab', bs=4, batch_tfms=tfms, device='cpu')
    kept = cached_photos(photos, path.parent/'kept')
    yield 'photos, training', photos.train
    yield 'photos of validation', photos.valid
    yield 'in memory', memory.valid
    yield 'in memory, training', memory.train
    yield 'exported learner', load_learner(path.parent/'learner.pkl').dls.test_dl(list(photos.valid_ds.items))
    yield 'kept photographs', kept.valid
    yield 'kept photographs, training', kept.train
    yield 'pairs, training', PartnersDL(photos.train)
    yield 'rotations, training', RotationsDL(photos.train)


def with_worker(dl):
    "The same loader with one worker process"
    return type(dl)(dl.dl.new(num_workers=1)) if isinstance(dl, GroupedDL) else dl.new(num_workers=1)


def batches(dl): return [b[0].as_subclass(torch.Tensor) for b in dl]


def differences(how, name, want, get):
    "A line where the batches of `get()` are not those that are wanted"
    try: got = get()
    except Exception as e: return print(f'{how}: {name}: {type(e).__name__}: {e}')
    same = [o.shape for o in got] == [o.shape for o in want] and ('training' in name or all(map(torch.equal, got, want)))
    if not same: print(f'{how}: {name}: other batches')


def all_batches(kinds, pipe):
    "In another process, which has got the loaders as a worker does"
    pipe.send([(name, [o.numpy() for o in batches(dl)]) for name, dl in kinds])


def sent_away(kinds):
    "The batches of all loaders in one spawned process, for each of which a worker would import everything anew"
    ours, theirs = multiprocessing.get_context('spawn').Pipe()
    p = multiprocessing.get_context('spawn').Process(target=all_batches, args=(kinds, theirs))
    p.start()
    theirs.close()
    got = dict(ours.recv())
    p.join()
    return {name: [torch.tensor(o) for o in bs] for name, bs in got.items()}


def main(folder, *methods):
    kinds = list(loaders(Path(folder)))
    want = {name: batches(dl) for name, dl in kinds}
    for method in methods:
        multiprocessing.set_start_method(method, force=True)
        for name, dl in kinds[:1] if method == 'spawn' else kinds: differences(method, name, want[name], lambda: batches(with_worker(dl)))
        if method != 'spawn': continue
        got = sent_away(kinds)
        for name, _ in kinds: differences(method, name, want[name], lambda: got[name])
    print('done')


if __name__ == '__main__':
    multiprocessing.set_forkserver_preload(['focusnet_fastai.data.folder', 'fastai.vision.all'])
    main(*sys.argv[1:])
