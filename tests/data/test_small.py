"MNIST, CIFAR and Tiny ImageNet: miniatures served over HTTP and unpacked by the real code, and the installed ones for real"
import functools, itertools, pickle, re
from pathlib import Path
import numpy as np, pytest, torch
from PIL import Image
from fastai.vision.all import Normalize, TensorCategory, TensorImageBW, fastai_path, first, get_image_files
from focusnet_fastai.data.memory import CropBatch, FlipBatch
from focusnet_fastai.data.photos import cub200_dls, stanford_dogs_dls
from focusnet_fastai.data.small import cifar100_dls, cifar10_classes, cifar10_dls, mnist_dls, tiny_imagenet_dls
from helpers.archives import SETS, makers
from helpers.miniatures import mini_tiny

pytestmark = pytest.mark.filterwarnings('ignore:.*Table 1 of the paper')

def installed(name): return pytest.mark.skipif(not (fastai_path('data')/name).is_dir(), reason=f"{name} is not installed in {fastai_path('data')}")


@pytest.mark.slow
@pytest.mark.parametrize('name', SETS)
def test_download_unpack_and_load(served, name):
    "The real way from a server to a batch; a second time nothing is fetched; other sizes than Table 1's are refused, or named in a warning"
    archive, _, sizes, kwargs, shape = SETS[name]
    make = functools.partial(makers[name], bs=10, **kwargs)
    with pytest.raises(ValueError, match=f'has .*{sizes[1]} training images instead of .*{sizes[2]} validation images instead of .*Table 1 of the paper.*use strict=False'): make()
    with pytest.warns(UserWarning, match=f'{sizes[1]} training images instead of'): dls = make(strict=False)
    assert (dls.c, len(dls.train_ds), len(dls.valid_ds)) == sizes and len(set(dls.vocab)) == sizes[0]
    for dl in dls:
        x, y = dl.one_batch()
        assert x.shape == (10, *shape) and x.dtype == torch.float32 and type(y) is TensorCategory and x.isfinite().all()
    counts = [np.bincount([int(b) for _, y in dl.new(shuffle=False, drop_last=False) for b in y]) for dl in dls]
    assert [set(o) for o in counts] == [{2}, {1}]  # each class has two images and one image


@pytest.mark.slow
def test_names_and_labels(served, archives):
    "Labels go with the right images, names with the right labels"
    mnist = mnist_dls(strict=False, shuffle=False)
    for i, y in enumerate(mnist.train_ds.y):
        file = get_image_files(archives/'mnist_png'/'training'/mnist.vocab[int(y)]).sorted()[i % 2]
        assert np.array_equal(mnist.train_ds.x[i, 0, 2:30, 2:30], np.asarray(Image.open(file))) and mnist.train_ds.x[i].sum() == mnist.train_ds.x[i, 0, 2:30, 2:30].sum()
    assert list(mnist.vocab) == [str(i) for i in range(10)] and type(mnist.one_batch()[0]) is TensorImageBW
    cifar = cifar10_dls(strict=False)
    for i, y in enumerate(cifar.valid_ds.y):
        assert np.array_equal(cifar.valid_ds.x[i].permute(1, 2, 0), np.asarray(Image.open(archives/'cifar10'/'test'/cifar.vocab[int(y)]/f'0_{cifar.vocab[int(y)]}.png')))
    c100, raw = cifar100_dls(strict=False), pickle.loads((archives/'cifar-100-python'/'train').read_bytes())
    assert np.array_equal(c100.train_ds.x.flatten(1), raw['data']) and c100.train_ds.y.tolist() == raw['fine_labels'] and c100.vocab[7] == 'class_07'
    norm = first(f for f in c100.train.after_batch.fs if isinstance(f, Normalize))
    assert torch.allclose(norm.mean.flatten(), (c100.train_ds.x/255).mean((0, 2, 3)), atol=1e-5)
    tiny = tiny_imagenet_dls(strict=False)
    assert list(tiny.vocab[:6]) == ['thing 0', 'thing 1', 'thing 2', 'thing 3', 'thing 4', 'crane (n01443542)'] and tiny.vocab[9] == 'crane (n01443546)'
    assert tiny.valid_ds.y.tolist() == [199 - i for i in range(200)]  # as the annotations say, not as the files are numbered
    assert tiny.train_ds.y.tolist() == [i//2 for i in range(400)] and torch.equal(tiny.train_ds.x[6, 0], tiny.train_ds.x[6, 2])  # grey
    cub = cub200_dls(strict=False, num_workers=0)
    assert list(cub.vocab[:2]) == ['Bird of kind 0', 'Bird of kind 1'] and {Path(f).stem[-4:] for f in cub.train_ds.items} == {'0000', '0001'} and {Path(f).stem[-4:] for f in cub.valid_ds.items} == {'0002'}
    dogs = stanford_dogs_dls(strict=False, num_workers=0)
    assert dogs.vocab[-1] == 'African hunting dog' and dogs.vocab[0] == 'Dog no 0' and all('_train' in Path(f).name for f in dogs.train_ds.items)
    assert all('_test' in Path(f).name for f in dogs.valid_ds.items)
    for dls in (cub, dogs): assert dls.vocab[int(dls.valid_ds[-1][1])] == (Path(dls.valid_ds.items[-1]).parent.name[4 if dls is cub else 10:].replace('_', ' '))


@pytest.mark.slow
def test_augmentation_as_in_the_paper(served):
    kinds = lambda dls: [type(f) for f in dls.train.after_batch.fs if type(f) in (CropBatch, FlipBatch)]
    assert kinds(mnist_dls(strict=False)) == []
    for f, pad in ((cifar10_dls, 4), (cifar100_dls, 4), (tiny_imagenet_dls, 8)):
        dls = f(strict=False)
        assert kinds(dls) == [CropBatch, FlipBatch] and dls.train.after_batch.fs[0].pad == pad and dls.train.bs == 128
        assert kinds(f(strict=False, pad=0, flip=0)) == []
    for f in (cub200_dls, stanford_dogs_dls):
        assert [type(o).__name__ for o in f(strict=False, num_workers=0).after_item.fs] == ['FlipItem', 'RandomResizedCrop', 'Resize', 'RandomCrop', 'ToTensor']


@pytest.mark.parametrize('size', [28, 32, 36])
def test_mnist_sizes_and_prediction(served, tmp_path, size):
    dls = mnist_dls(strict=False, size=size)
    assert dls.one_batch()[0].shape[1:] == (1, size, size)
    file = fastai_path('data')/'mnist_png'/'testing'/'3'/'300.png'
    Image.open(file).resize((56, 56), Image.Resampling.NEAREST).convert('RGB').save(tmp_path/'big.png')
    want = dls.valid_ds.x[3:4]
    assert torch.equal(dls.valid_ds.test_set([file]).x, want)  # a picture of 28x28 gets its frame, too
    assert dls.valid_ds.test_set([tmp_path/'big.png']).x.shape == want.shape
    p = (size - 28)//2
    framed = dls.valid_ds.test_set([tmp_path/'big.png']).x[0, 0]
    if p: assert framed[:p].sum() == 0 and framed[p:-p, p:-p].min() >= 90
    with pytest.raises(ValueError, match='size must be 28, 30, 32 ..., but is 31'): mnist_dls(size=31)


def test_layout_of_tiny_imagenet(tmp_path):
    tiny = mini_tiny(tmp_path/'tiny')
    notes = tiny/'val'/'val_annotations.txt'
    notes.write_text(notes.read_text().replace('n01443537', 'n00000000'))
    with pytest.raises(ValueError, match='gives val_199.JPEG the unknown class n00000000'): tiny_imagenet_dls(path=tiny)
    for f in (tiny/'train'/'n01443540'/'images').iterdir(): f.unlink()
    with pytest.raises(ValueError, match='n01443540/images of the class .thing 3. holds no images'): tiny_imagenet_dls(path=tiny)


@installed('mnist_png')
@pytest.mark.slow
def test_mnist_real():
    dls = mnist_dls()
    assert (len(dls.train_ds), len(dls.valid_ds)) == (60000, 10000) and dls.train_ds.x.shape[1:] == (1, 32, 32)
    assert dls.train_ds.y.bincount().tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]  # the original's counts
    x = torch.cat([x for x, _ in dls.train.new(shuffle=False, drop_last=False, bs=5000)])
    assert abs(x.mean()) < 1e-3 and abs(x.std() - 1) < 1e-3
    x = torch.cat([x for x, _ in mnist_dls(size=28).train.new(shuffle=False, drop_last=False, bs=5000)])
    assert abs(x.mean()) < 5e-3 and abs(x.std() - 1) < 5e-3
    file = first(get_image_files(fastai_path('data')/'mnist_png'/'testing'/'7'))
    assert (dls.valid_ds.x == dls.valid_ds.test_set([file]).x).flatten(1).all(1).any()


@installed('cifar10')
@pytest.mark.slow
def test_cifar10_real():
    dls = cifar10_dls()
    assert (len(dls.train_ds), len(dls.valid_ds)) == (50000, 10000) and dls.train_ds.x.shape[1:] == (3, 32, 32) and dls.train_ds.x.dtype == torch.uint8
    assert dls.train_ds.y.bincount().tolist() == [5000]*10 and dls.valid_ds.y.bincount().tolist() == [1000]*10
    x = torch.cat([x for x, _ in dls.valid])
    assert abs(x.mean()) < .05 and abs(x.std() - 1) < .05
    rng = np.random.RandomState(0)
    root = fastai_path('data')/'cifar10'/'test'
    for c in rng.choice(cifar10_classes, 3):
        file = get_image_files(root/c).sorted()[int(rng.randint(1000))]
        where = (dls.valid_ds.x == dls.valid_ds.test_set([file]).x).flatten(1).all(1).nonzero().flatten()
        assert {dls.vocab[int(dls.valid_ds.y[i])] for i in where} == {c}


@installed('tiny-imagenet-200')
def test_tiny_imagenet_real():
    "Table 1's sizes, 500 and 50 images a class, and pictures that are those of the files"
    dls = tiny_imagenet_dls()
    assert (dls.c, len(dls.train_ds), len(dls.valid_ds)) == (200, 100_000, 10_000) and dls.train_ds.x.shape[1:] == (3, 64, 64) and dls.train_ds.x.dtype == torch.uint8
    assert dls.train_ds.y.bincount().tolist() == [500]*200 and dls.valid_ds.y.bincount().tolist() == [50]*200 and list(dls.vocab)[:3] == ['goldfish', 'European fire salamander', 'bullfrog']
    x = torch.cat([x for x, _ in itertools.islice(dls.valid, 16)])
    assert abs(x.mean()) < .1 and .9 < x.std() < 1.4  # small pictures have more contrast than ImageNet's statistics say
    root = fastai_path('data')/'tiny-imagenet-200'
    rows = [o.split('\t')[:2] for o in (root/'val'/'val_annotations.txt').read_text().splitlines()]
    ids = sorted((root/'wnids.txt').read_text().split())
    for i in (0, 4321, 9999):
        file, o = rows[i]
        assert torch.equal(dls.valid_ds.x[i], dls.valid_ds.test_set([root/'val'/'images'/file]).x[0]) and ids[int(dls.valid_ds.y[i])] == o
