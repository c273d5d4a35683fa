"""Many classes, few images a class, trained to a plateau: where the paper says that FocusNet helps.

`python results/many_classes.py FOLDER --seeds 0 1 2` runs every arm with every seed below FOLDER/runs (what is finished is not run again, what was broken off goes on) on the images in FOLDER/cifar100, one folder `train` and one
`test` with one folder a class each (github.com/cyizhuo/CIFAR-100-dataset). Settings were fixed before any of these runs; seeds choose the training images, the initialisation and the order.
"""
import argparse, os, warnings
warnings.filterwarnings('ignore')
import torch
from fastai.vision.all import *
from focusnet_fastai.data.archives import cached_images, class_files
from focusnet_fastai.data.small import channel_stats, small_dls
from focusnet_fastai.lab.recipes import StepRate, Training, top_5
from focusnet_fastai.lab.runs import run_seeds
from focusnet_fastai.models import thin_resnet
from focusnet_fastai.precision import HalfPrecision # noqa: F401, `Learner.to_precision`

FOLDER = Path('.')
ARMS = dict(ce=('baseline', {}), ce_2x=('baseline', dict(epochs=80)), label_smoothing=('label_smoothing', {}), confidence_penalty=('confidence_penalty', {}),
            focusnet=('focusnet', {}), focusnet_released=('focusnet_released', {}))


def folder_images(path, splits):
    "Bytes and labels of each split, and the class names"
    names = sorted(o.name for o in (path/splits[0]).iterdir() if o.is_dir())
    data = []
    for split, files in zip(splits, class_files(path, {o: o for o in names}, splits)):
        x = cached_images(path/f'{split}.npz', files)
        data.append((x, torch.tensor([names.index(f.parent.name) for f in files])))
    return data, names


def cifar100_few(
    per_class:int=100, # training images of each class
    seed:int=0, # chooses them
    epochs:int=40, # in all
    lr:float=0.1, # at the start
    drops=(1/2,3/4), # fractions of the training where the rate falls by 10
    wd:float=5e-4, # weight decay
    bs:int=128, # images a batch
    width:int=16, # of the thin ResNet
    precision:str='bf16' # None: float32
)->Training:
    "CIFAR-100 with few images a class and a thin ResNet, SGD whose rate falls in steps"
    ((x, y), valid), names = folder_images(FOLDER/'cifar100', ('train', 'test'))
    order = np.random.RandomState(seed).permutation(len(y))
    idxs = sorted(np.concatenate([[i for i in order if y[i] == c][:per_class] for c in range(len(names))]).tolist())
    dls = small_dls((x[idxs], y[idxs]), valid, names, channel_stats(x), 4, .5, bs=bs)
    model = thin_resnet(dls.c, width=width)
    learn = Learner(dls, model, opt_func=partial(SGD, mom=.9, decouple_wd=False), lr=lr, wd=wd, wd_bn_bias=True, metrics=[accuracy, top_5])
    if precision: learn.to_precision(precision)
    return Training(learn, epochs, lr, dict(lr=StepRate(lr, drops)))


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('folder', type=Path)
    parser.add_argument('--seeds', type=int, nargs='+', default=[0])
    parser.add_argument('--arms', nargs='+', default=list(ARMS), choices=ARMS)
    args = parser.parse_args()
    FOLDER = args.folder.resolve()
    torch.set_num_threads(1)
    for seed in args.seeds:
        for arm in args.arms:
            method, settings = ARMS[arm]
            run_seeds(cifar100_few, method, [seed], FOLDER/'runs', **settings)
