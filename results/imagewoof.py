"""Imagewoof with the standard ResNet-18 from scratch at 128 pixels, on a GPU or a processor: does FocusNet help on photographs?

    python results/imagewoof.py FOLDER                          # every row; what is finished is not run again, what was broken off goes on
    python results/imagewoof.py FOLDER --seeds 0 --arms ce focusnet
    python results/imagewoof.py FOLDER --table results/gpu/imagewoof-24

FOLDER/imagewoof2-160 holds fastai's archive `URLs.IMAGEWOOF_160` (folders train and val). The centre square of each photograph is kept
at 160 pixels; training zooms, turns, mirrors and lights it at random on the device (fastai's `aug_transforms`), validation shows all of
it. The schedule is the paper's (Section 4.2: SGD from 0.1, a tenth at a half and at three quarters), shortened to `epochs`; nothing was
chosen on these images. Several processes may train at once, one a row: start those of plain training first, the others wait for them.
"""
import os, warnings
os.environ.setdefault('OMP_NUM_THREADS', '1')
warnings.filterwarnings('ignore')
import torch
from fastai.vision.all import *
from focusnet_fastai.data.image_files import check_sizes, class_files, fingerprint, keep_images, kept_images
from focusnet_fastai.data.photos import imagewoof_breeds
from focusnet_fastai.data.pictures import open_picture
from focusnet_fastai.data.small import folder_labels, small_dls
from focusnet_fastai.lab.recipes import sgd_steps
from focusnet_fastai.lab.runs import run_seeds
from focusnet_fastai.lab.training import Training
from regimes import finished, logits_of, main

FOLDER = Path(os.environ.get('REGIMES', '.'))
stored = 160


def square(f): return image2tensor(Resize(stored)(open_picture(f), split_idx=1))


def squares(split, files):
    "The centre square of each photograph `(N,3,160,160)`, decoded once"
    cache, key = FOLDER/f'imagewoof-{split}-{stored}.npz', fingerprint(files, 'centre', stored)
    x = kept_images(cache, key, len(files))
    if x is None:
        x = torch.stack(list(parallel(square, files, n_workers=defaults.cpus, threadpool=True, progress=False)))
        keep_images(cache, x, key)
    return x


def woof(
    size:int=128, # pixels
    epochs:int=24, # in all
    lr:float=0.1, # at the start
    wd:float=1e-4, # weight decay
    bs:int=64, # photographs a batch
    zoom:float=1.6, # the most that a training photograph is enlarged
    net:str='resnet18', # one of `networks`
    precision:str='bf16', # None: float32
    strict:bool=True # all photographs must be there
)->Training:
    "Imagewoof from scratch, the photographs in memory"
    splits = class_files(FOLDER/'imagewoof2-160', imagewoof_breeds)
    check_sizes('Imagewoof', (len(imagewoof_breeds), *map(len, splits)), FOLDER, strict)
    data = [(squares(o, fs), folder_labels(fs, imagewoof_breeds)) for o, fs in zip(('train', 'val'), splits)]
    tfms = [*aug_transforms(size=size, max_zoom=zoom, max_warp=0.), Normalize.from_stats(*imagenet_stats)]
    dls = small_dls(*data, list(imagewoof_breeds.values()), imagenet_stats, bs=bs, val_bs=4*bs, batch_tfms=tfms, prepare=[Resize(stored)])
    return sgd_steps(dls, net, epochs, lr, wd=wd, precision=precision, channels_last=True)


# regime: recipe, its settings, epochs, seeds
REGIMES = {'imagewoof': (woof, {}, 24, range(3))}
# arm: method, its settings, factor of the epochs
ARMS = dict(ce=('baseline', {}, 1), ce_2x=('baseline', {}, 2), focusnet=('focusnet', {}, 1), released=('focusnet_released', {}, 1),
            label_smoothing=('label_smoothing', {}, 1))


def runs_of(regime, arm, seeds, root):
    "Train one arm of a regime with some seeds, and keep the logits of the validation photographs"
    recipe, settings, epochs, _ = REGIMES[regime]
    method, own, factor = ARMS[arm]
    res = run_seeds(recipe, method, seeds, root/regime, **settings, **own, epochs=epochs*factor)
    for seed in seeds: logits_of(finished(regime, root, REGIMES, {arm: ARMS[arm]})[arm, seed], recipe)
    return res


def set_folder(folder):
    global FOLDER
    FOLDER = folder


if __name__ == '__main__': main(REGIMES, ARMS, runs_of, __doc__, set_folder)
