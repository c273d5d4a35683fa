"Section 4.2 as recipes: rates, weight decay, networks, parts of the data, and the modern recipe."
import inspect, math, random

import pytest, torch
from fastcore.docments import docments
from PIL import Image
from fastai.vision.all import Adam, Callback, ImageDataLoaders, Learner, RandomResizedCrop, accuracy, fastai_path, set_seed
from torch import nn

import focusnet_fastai.all as everything
from focusnet_fastai.data.memory import InMemoryLoaders
from focusnet_fastai.data.digits import digits_dls
from focusnet_fastai.models import complexity
from focusnet_fastai.models import network, networks
from focusnet_fastai.lab.study import config_hash
from focusnet_fastai.lab.config import run_config
from focusnet_fastai.lab.recipes import (cifar10, cifar100, cub200, data_loaders, data_sets, digits, imagenet,
                                         imagenet_dogs, imagewoof, mnist, modern, poor_baseline, recipes, stanford_dogs,
                                         tiny_imagenet)
from focusnet_fastai.lab.training import image_subset, on_gpu, top_5, Training

LONG, SHORT = ('mnist', 'cifar10', 'cifar100', 'imagewoof', 'cub200', 'stanford_dogs'), ('tiny_imagenet', 'imagenet_dogs', 'imagenet')  # 200 and 90 epochs
SMALL = ('cifar10', 'cifar100', 'tiny_imagenet', 'imagenet_dogs')  # modified networks
BATCHES = dict(mnist=128, cifar10=128, cifar100=128, tiny_imagenet=128, imagenet_dogs=128, imagewoof=64, cub200=32, stanford_dogs=32, imagenet=256)


def tiny(n=8, bs=4, channels=1, size=32, c=4, **kwargs):
    "Noise with labels: two batches"
    g = torch.Generator().manual_seed(0)
    x, y = torch.rand(n, channels, size, size, generator=g), torch.arange(n) % c
    return InMemoryLoaders.from_tensors((x, y), (x[:4], y[:4]), [f'class {i}' for i in range(c)], bs=bs, device='cpu', **kwargs)


class Rates(Callback):
    "What the optimiser has at each step"
    order = 90
    def __init__(self): self.steps = []
    def before_step(self): self.steps.append((self.epoch, *[self.opt.hypers[-1].get(o) for o in ('lr', 'mom', 'wd')]))
    def at(self, i): return [s[i] for s in self.steps]
    def epochs(self, i=1): return [s[i] for n, s in enumerate(self.steps) if n == 0 or s[0] != self.steps[n-1][0]]


def trained(t):
    "The rates of a real fit"
    rates = Rates()
    with t.learn.no_bar(), t.learn.no_logging(): t.fit(rates)
    return rates


# -- the rate ---------------------------------------------------------------------------------------------------------

def section_4_2(epochs, drops): return [.1*.1**sum(e >= d for d in drops) for e in range(epochs)]


@pytest.mark.parametrize('name', LONG + SHORT)
def test_settings_and_rate_of_each_epoch(name):
    "SGD 0.1/0.9/1e-4; 200 epochs, a tenth at 100 and 150, or 90 epochs, a tenth at 30 and 60"
    t = recipes[name](dls=tiny(), net='lenet5')
    epochs, drops = (200, (100, 150)) if name in LONG else (90, (30, 60))
    assert t.epochs == epochs and t.lr == .1 and list(t.scheds) == ['lr']
    assert [t.scheds['lr'](e/epochs) for e in range(epochs)] == pytest.approx(section_4_2(epochs, drops), rel=1e-9)
    assert inspect.signature(recipes[name]).parameters['bs'].default == BATCHES[name]
    assert hasattr(everything, f'{name}_dls')


@pytest.mark.slow
@pytest.mark.parametrize('name, drops', [('cifar10', (100, 150)), ('tiny_imagenet', (30, 60))])
def test_rate_in_a_whole_training(name, drops):
    "As the optimiser has it, epoch by epoch, over all 200 or 90 of them"
    t = recipes[name](dls=tiny(4, 4), net='lenet5', he_init=True, n_valid=1)
    rates = trained(t)
    assert rates.epochs() == pytest.approx(section_4_2(t.epochs, drops), rel=1e-6)
    assert set(rates.at(2)) == {.9} and set(rates.at(3)) == {1e-4} and len(rates.steps) == t.epochs


@pytest.mark.parametrize('name', LONG + SHORT)
def test_scaled_rate(name):
    "With fewer epochs the rate falls at the same fractions of the training"
    rates = trained(recipes[name](dls=tiny(), net='lenet5', epochs=8))
    want = [.1, .1, .1, .1, .01, .01, .001, .001] if name in LONG else [.1, .1, .1, .01, .01, .01, .001, .001]  # a third of 8 epochs: before the fourth
    assert rates.epochs() == pytest.approx(want) and set(rates.at(2)) == {.9} and set(rates.at(3)) == {1e-4}


HASHES = dict( # of a run with all defaults, and of one with others: by these, runs that were made once are found again
    mnist=('762df538da', 'a177f72069'),
    cifar10=('a9b2f3c18d', 'c6534a9ca9'),
    cifar100=('5342f43096', 'e5956954e8'),
    imagewoof=('c5cdf0d34c', 'a086af757c'),
    cub200=('55fb36435c', 'ccdb8c9756'),
    stanford_dogs=('0047655a1c', '6ebe80b1a8'),
    tiny_imagenet=('cc8feec96c', '24f7a373e3'),
    imagenet_dogs=('ec89797556', 'b2858a97c5'),
    imagenet=('83309f952d', 'ee958c6d0e'),
    modern=('a4ba791235', '222c999ac8'),
    digits=('deebc3ce11', 'a3ac3d9b04'))


@pytest.mark.parametrize('name', HASHES)
def test_configurations_stay_what_they_were(name):
    "However a recipe is written"
    other = run_config(name, 'focusnet', 3, epochs=5, base=dict(net='mobilenet_v2'))
    assert (config_hash(run_config(name, 'baseline', 0)), config_hash(other)) == HASHES[name]
    docs = docments(recipes[name])
    assert not [k for k in inspect.signature(recipes[name]).parameters if not docs[k]]  # each argument is explained


def test_every_number_is_an_argument():
    rates = trained(cifar10(dls=tiny(), net='lenet5', epochs=4, lr=.2, drops=(.75,), factor=.5, mom=.8, wd=.01))
    assert rates.steps == [(e, pytest.approx(.2 if e < 3 else .1), .8, .01) for e in range(4) for _ in range(2)]


@pytest.mark.parametrize('name, epochs', dict(cifar10=1, imagewoof=30, cifar100=5, cub200=50, stanford_dogs=50, tiny_imagenet=10, imagenet_dogs=10).items())
def test_poor_baselines(name, epochs):
    "Table 9: MobileNetV2 at a constant rate"
    args = poor_baseline(name)
    assert args == dict(net='mobilenet_v2', epochs=epochs, drops=())
    rates = trained(recipes[name](dls=tiny(4, 4), **{**args, 'net': 'lenet5', 'epochs': min(epochs, 10)}))
    assert set(rates.at(1)) == {.1} and len(rates.steps) == min(epochs, 10)
    assert poor_baseline(name, 'resnet18', 20) == dict(net='resnet18', epochs=20, drops=())  # Figure 4


@pytest.mark.slow
def test_weight_decay_is_l2():
    "As in PyTorch's SGD: part of the gradient, for all parameters, norms and biases too"
    dls = tiny(channels=3, shuffle=False, drop_last=False)
    set_seed(0)
    t = cifar10(dls=dls, epochs=2, lr=.05, drops=(.5,), wd=.02)
    other = network('resnet18', 4, small=True)
    other.load_state_dict(t.learn.model.state_dict())
    before = {k: v.clone() for k, v in other.state_dict().items()}
    trained(t)
    opt = torch.optim.SGD(other.parameters(), lr=.05, momentum=.9, weight_decay=.02)
    other.train()
    for lr in (.05, .005):
        for g in opt.param_groups: g['lr'] = lr
        for x, y in dls.train:
            opt.zero_grad(); nn.functional.cross_entropy(other(x.as_subclass(torch.Tensor)), y.as_subclass(torch.Tensor)).backward(); opt.step()
    mine = dict(t.learn.model.named_parameters())
    for k, v in other.named_parameters():
        assert torch.allclose(mine[k], v, atol=2e-5, rtol=1e-3), k
        assert not torch.allclose(before[k], v, atol=2e-5, rtol=1e-3), k


def test_crops_are_arguments():
    "Of the recipes as of the loaders, and the same: methods.md's numbers, 4 and 8 zeros, or 8 % of the area"
    for name in SMALL + ('imagewoof', 'cub200', 'stanford_dogs', 'imagenet'):
        mine, theirs = [inspect.signature(o).parameters for o in (recipes[name], getattr(everything, f'{name}_dls'))]
        k, want = ('pad', 4 if name.startswith('cifar') else 8) if name in SMALL else ('min_scale', .08)
        assert mine[k].default == want and (theirs[k].default == want or name == 'imagewoof'), name


# -- networks ---------------------------------------------------------------------------------------------------------

def smallest_map(net, size, channels=3):
    "Height of the last feature map"
    sizes = []
    hooks = [m.register_forward_hook(lambda m, i, o: sizes.append(o.shape[-1])) for m in net.modules() if isinstance(m, nn.Conv2d)]
    with torch.no_grad(): net.eval()(torch.rand(1, channels, size, size))
    for h in hooks: h.remove()
    return min(sizes)


@pytest.mark.parametrize('name', [o for o in LONG + SHORT if o != 'mnist'])
def test_network_of_each_data_set(name):
    "Modified networks divide small images by 8, standard ones photographs by 32 (Section 4.2)"
    size = 32 if name.startswith('cifar') else 64 if name in SMALL else 224
    dls = tiny(4, 2, channels=3)
    nets = {o: recipes[name](dls=dls, net=o).learn.model for o in ('resnet18', 'mobilenet_v2', *(['resnet34'] if name in ('cifar10', 'imagewoof') else []))}
    assert type(recipes[name](dls=dls).learn.model) is type(nets['resnet18'])
    for o in nets.values(): assert smallest_map(o, size) == (size//8 if name in SMALL else size//32)


@pytest.mark.slow
def test_sizes_of_networks():
    "With 200 classes (Table 4 of the paper); LeNet-5 for MNIST"
    assert [complexity(network(o, 200, small=True), 64).params for o in ('resnet18', 'resnet34', 'mobilenet_v2')] == [11_271_432, 21_379_592, 943_880]
    model = mnist(dls=tiny()).learn.model
    assert [type(o) for o in model.modules()] == [type(o) for o in network('lenet5', 4).modules()] and smallest_map(model, 32, 1) < 16
    with pytest.raises(ValueError, match="Unknown network 'resnet50': choose from lenet5, "): cifar10(net='resnet50', dls=tiny())


def test_he_initialisation():
    "Where it is asked for"
    set_seed(0)
    for m in mnist(dls=tiny(), he_init=True).learn.model.modules():
        if isinstance(m, nn.Conv2d) and m.weight.numel() > 500:
            fan_in = m.weight[0].numel()
            assert m.weight.std().item() == pytest.approx(math.sqrt(2/fan_in), rel=.1) and abs(m.weight.mean()) < .02
    a, b = [max(m.weight.std() for m in cifar10(dls=tiny(), net='lenet5', he_init=o).learn.model.modules() if isinstance(m, nn.Linear)) for o in (True, False)]
    assert a > 1.5*b  # PyTorch's own is narrower by the square root of 6


# -- data -------------------------------------------------------------------------------------------------------------

def test_part_of_the_training_images():
    "The same ones each time, of all classes; the loaders that are passed stay as they are"
    dls = digits_dls(n_train=400)
    parts = [cifar10(dls=dls, net='lenet5', n_train=50, n_valid=60).learn.dls for _ in range(2)]
    for o in parts: assert (len(o.train_ds), len(o.valid_ds), o.c, o.vocab) == (50, 60, 10, dls.vocab)
    assert torch.equal(parts[0].train_ds.x, parts[1].train_ds.x) and (len(dls.train_ds), len(dls.valid_ds)) == (400, 797)
    rows = {tuple(o.flatten().tolist()) for o in dls.train_ds.x}
    assert all(tuple(o.flatten().tolist()) in rows for o in parts[0].train_ds.x) and len(set(parts[0].train_ds.y.tolist())) > 7
    assert parts[0].train.shuffle and parts[0].train.bs == dls.train.bs and not parts[0].valid.shuffle
    for n in (0, 401):
        with pytest.raises(ValueError, match=f'`n_train` must lie in 1..400, but is {n}'): cifar10(dls=dls, net='lenet5', n_train=n)


def test_part_of_image_files(tmp_path):
    for s, n in (('train', 5), ('valid', 2)):
        for c in 'ab':
            (tmp_path/s/c).mkdir(parents=True)
            for i in range(n): Image.new('RGB', (20, 20), (i*40, 0, 0)).save(tmp_path/s/c/f'{i}.png')
    dls = ImageDataLoaders.from_folder(tmp_path, bs=4, item_tfms=RandomResizedCrop(16), num_workers=0)
    part = imagewoof(dls=dls, n_train=6).learn.dls
    assert len(part.train_ds) == 6 and len(part.valid_ds) == 4 and set(part.train_ds.items) < set(dls.train_ds.items) and len(dls.train_ds) == 10
    x, y = part.one_batch()
    assert x.shape == (4, 3, 16, 16) and list(part.vocab) == ['a', 'b']


def test_part_of_the_validation_images(tmp_path):
    "`split=1` takes from those, in memory and in files, and leaves the training images alone"
    dls = digits_dls(n_train=100)
    for n, seed in ((60, 0), (60, 1), (1, 0)):
        a, b = [image_subset(dls, n, seed, split=1) for _ in range(2)]
        assert (len(a.train_ds), len(a.valid_ds), len(dls.valid_ds)) == (100, n, 797) and a.train is dls.train
        assert torch.equal(a.valid_ds.x, b.valid_ds.x) and a.valid_ds.split_idx == dls.valid_ds.split_idx == 1
        rows = [tuple(o.flatten().tolist()) for o in dls.valid_ds.x]
        idxs = [rows.index(tuple(o.flatten().tolist())) for o in a.valid_ds.x]
        assert idxs == sorted(idxs) and [int(dls.valid_ds.y[i]) for i in idxs] == a.valid_ds.y.tolist()
    assert not torch.equal(image_subset(dls, 60, 1, 1).valid_ds.x, image_subset(dls, 60, 0, 1).valid_ds.x)
    assert image_subset(dls, None, split=1) is dls and image_subset(dls, 797, split=1) is dls
    for n in (0, -1, 798):
        with pytest.raises(ValueError, match=f'`n_valid` must lie in 1..797, but is {n}'): image_subset(dls, n, split=1)
        with pytest.raises(ValueError, match=f'`n_valid` must lie in 1..797, but is {n}'): modern(dls=dls, net='lenet5', n_valid=n)
    for s, n in (('train', 3), ('valid', 4)):
        for c in 'ab':
            (tmp_path/s/c).mkdir(parents=True)
            for i in range(n): Image.new('RGB', (20, 20), (i*40, 0, 0)).save(tmp_path/s/c/f'{i}.png')
    files = ImageDataLoaders.from_folder(tmp_path, bs=4, item_tfms=RandomResizedCrop(16), num_workers=0)
    part = imagewoof(dls=files, n_valid=5).learn.dls
    assert (len(part.train_ds), len(part.valid_ds)) == (6, 5) and set(part.valid_ds.items) < set(files.valid_ds.items) and len(part.valid.one_batch()[0]) == 4


def test_validation_of_a_part():
    "The log is about those images alone, and a run is another one"
    dls = digits_dls(n_train=64)
    t = modern(dls=dls, net='lenet5', epochs=1, n_valid=30)
    trained(t)
    z, y = t.learn.get_preds(act=lambda o: o)
    assert len(y) == 30 and t.learn.validate()[1] == pytest.approx((z.argmax(1) == y).float().mean().item())
    assert config_hash(run_config('cifar10', 'focal', n_valid=30)) != config_hash(run_config('cifar10', 'focal'))


@pytest.mark.slow
@pytest.mark.skipif(not (fastai_path('data')/'cifar10').is_dir(), reason=f"CIFAR-10 is not installed in {fastai_path('data')}")
def test_cifar10_itself():
    t = recipes['cifar10'](epochs=5, n_train=1000)
    assert repr(t) == 'Training: 5 epochs, 1000 images, 10000 for validation, 10 classes' and t.learn.dls.train.bs == 128
    x, y = t.learn.dls.one_batch()
    assert x.shape == (128, 3, 32, 32) and t.learn.model.eval().to(x.device)(x[:2]).shape == (2, 10)
    for kw, pad in ((dict(), 4), (dict(pad=2), 2)):
        assert [o.pad for o in recipes['cifar10'](n_train=100, n_valid=50, **kw).learn.dls.train.after_batch.fs if type(o).__name__ == 'CropBatch'] == [pad]


def test_data_loaders():
    "By name, each of them"
    assert len(data_loaders('digits', n_train=30).train_ds) == 30
    with pytest.raises(ValueError, match="Unknown data set 'birds': choose from mnist, "): data_loaders('birds')
    assert set(data_sets) == set(recipes) - {'modern'}
    for name in ('mnist', 'imagewoof', 'imagenet'):
        with pytest.raises(FileNotFoundError, match='nowhere'): data_loaders(name, path='nowhere')


# -- one cycle --------------------------------------------------------------------------------------------------------

@pytest.mark.slow
def test_modern_is_fit_one_cycle():
    "Rates, momenta and weights of every step"
    def dls():
        dls = digits_dls(n_train=256)
        dls.train.rng = random.Random(3)
        return dls
    set_seed(1)
    t = modern(dls=dls(), net='lenet5', epochs=3, lr=4e-3)
    start = {k: v.clone() for k, v in t.learn.model.state_dict().items()}
    set_seed(2); mine = trained(t)
    learn, theirs = Learner(dls(), network('lenet5', 10), opt_func=Adam, metrics=accuracy), Rates()
    learn.model.load_state_dict(start)
    set_seed(2)
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(3, 4e-3, cbs=theirs)
    assert mine.steps == theirs.steps and len(mine.steps) == 12
    assert all(torch.equal(a, b) for a, b in zip(t.learn.model.parameters(), learn.model.parameters()))
    assert max(mine.at(1)) == pytest.approx(4e-3, rel=1e-3) and mine.at(1)[0] == pytest.approx(4e-3/25) and mine.at(2)[0] == .95


def test_digits_are_those_of_the_demo():
    "The same weights to the last bit as `focusnet-demo` trains"
    from focusnet_fastai.app.demo import train_lenet
    dls = digits_dls(n_train=400)
    dls.train.rng = random.Random(0)
    theirs = train_lenet(dls, 3, seed=0)
    dls.train.rng = random.Random(0)
    set_seed(0)
    t = digits(dls=dls, epochs=3)
    trained(t)
    for a, b in zip(t.learn.model.parameters(), theirs.model.parameters()): assert torch.equal(a, b)


def test_digits_recipe():
    "One cycle with SGD; the number of epochs scales it"
    t = digits(n_train=128, epochs=2)
    rates = trained(t)
    assert set(rates.at(2)) == {.9} and set(rates.at(3)) == {1e-4} and len(rates.steps) == 4 and rates.at(1)[0] == pytest.approx(.02/25)
    assert torch.equal(digits(n_train=64, seed=3).learn.dls.train_ds.x, digits(n_train=64, seed=3).learn.dls.train_ds.x)
    assert not torch.equal(digits(n_train=64, seed=3).learn.dls.train_ds.x, digits(n_train=64, seed=4).learn.dls.train_ds.x)


# -- mistakes ---------------------------------------------------------------------------------------------------------

def test_bad_numbers_are_named():
    dls = tiny()
    for epochs in (0, -1, 2.5, '3'):
        with pytest.raises(ValueError, match=f'`epochs` must be a positive whole number, but is {epochs!r}'): cifar10(dls=dls, net='lenet5', epochs=epochs)
    with pytest.raises(ValueError, match='fractions of the training between 0 and 1, but 100 is not'): cifar10(dls=dls, net='lenet5', drops=(.5, 100))
    with pytest.raises(ValueError, match="`precision` must be 'bf16', 'fp16' or None, but is 'half'"): cifar10(dls=dls, net='lenet5', precision='half')
    with pytest.raises(ValueError, match='no poor baseline for mnist'): poor_baseline('mnist')
    with pytest.raises(TypeError, match="cifar10\\(\\) has no setting 'momentum'"): cifar10(dls=dls, net='lenet5', momentum=.9)


@pytest.mark.parametrize('make', [cifar10, modern])
def test_precision_and_memory_format(make):
    "Callbacks do the work; without the arguments there are none"
    def cbs(**kwargs):
        t = make(dls=tiny(channels=3), net='small_cnn', epochs=1, **kwargs)
        return t, {type(o).__name__: o for o in t.learn.cbs}
    t, plain = cbs()
    assert not {'HalfPrecision', 'ChannelsLast'} & set(plain)
    _, found = cbs(precision='bf16')
    assert set(found) - set(plain) == {'HalfPrecision'} and found['HalfPrecision'].amp_mode.value == 'bf16'
    with pytest.raises(ValueError, match='needs a GPU'): cbs(precision='fp16')
    t, found = cbs(channels_last=True)
    assert set(found) - set(plain) == {'ChannelsLast'}
    trained(t)
    conv = next(m for m in t.learn.model.modules() if isinstance(m, nn.Conv2d) and m.weight.shape[1] > 1)
    assert conv.weight.is_contiguous(memory_format=torch.channels_last) and not conv.weight.is_contiguous()


@pytest.mark.parametrize('precision', ['half', 'float16', 'FP16', '', True, 16])
def test_bad_precision_is_named(precision):
    "Before anything is set"
    learn = Learner(tiny(), network('lenet5', 4))
    n = len(learn.cbs)
    with pytest.raises(ValueError, match=f"`precision` must be 'bf16', 'fp16' or None, but is {precision!r}"): on_gpu(learn, precision, channels_last=True)
    assert len(learn.cbs) == n
    for make in (mnist, modern):
        with pytest.raises(ValueError, match="`precision` must be"): make(dls=tiny(), net='lenet5', precision=precision)


def test_top_5():
    z = torch.tensor([[6., 5, 4, 3, 2, 1], [6., 5, 4, 3, 2, 1]])
    assert top_5(z, torch.tensor([4, 5])) == .5 and top_5(z[:, :3], torch.tensor([2, 0])) == 1
