"in_memory: the same batches as fastai's loaders, or a refusal by name"
import random
from pathlib import Path
import numpy as np, pytest, torch
from PIL import Image
from torch import nn
from fastai.vision.all import (CategoryBlock, CropPad, DataBlock, FlipItem, ImageBlock, ImageDataLoaders, IndexSplitter, Learner, MultiCategoryBlock, Normalize,
                               PILImage, PILImageBW, RandomCrop, RandomResizedCrop, Resize, TensorImageBW, Transform, WeightedDL, accuracy, get_image_files,
                               imagenet_stats, parent_label)
from focusnet_fastai.data.convert import in_memory
from focusnet_fastai.data.memory import CropBatch, FlipBatch, InMemoryLoaders
from helpers.learners import same_batches


@pytest.fixture(scope='module')
def pngs(tmp_path_factory):
    "60 generated colour images of 16x16 in folders of three classes"
    path, rng = tmp_path_factory.mktemp('pngs'), np.random.RandomState(0)
    for i in range(60):
        (path/'abc'[i % 3]).mkdir(exist_ok=True)
        Image.fromarray(rng.randint(0, 256, (16, 16, 3)).astype(np.uint8)).save(path/'abc'[i % 3]/f'{i:02}.png')
    return path


def plain_dls(path, **kwargs):
    "fastai's own loaders, item by item"
    kwargs = {'valid_pct': .25, 'seed': 0, 'bs': 10, 'num_workers': 0, 'batch_tfms': Normalize.from_stats(*imagenet_stats), **kwargs}
    return ImageDataLoaders.from_folder(path, **kwargs)


@pytest.mark.parametrize('kwargs', [dict(), dict(bs=7, val_bs=4), dict(item_tfms=Resize(12, 'squish')), dict(item_tfms=Resize(12)), dict(item_tfms=Resize((12, 20), 'squish')),
                                    dict(item_tfms=CropPad(20)), dict(item_tfms=CropPad(12)), dict(item_tfms=[FlipItem(0.), CropPad(24), RandomCrop(24)]), dict(item_tfms=FlipItem(1.)), dict(shuffle=False), dict(batch_tfms=[])], ids=str)
def test_in_memory_gives_the_same_batches(pngs, kwargs):
    random.seed(5)
    plain = plain_dls(pngs, **kwargs)
    held = in_memory(plain)
    assert type(held) is InMemoryLoaders and held.path == plain.path and list(held.vocab) == list(plain.vocab) == ['a', 'b', 'c'] and held.c == 3
    for _ in range(2):
        for a, b in zip(plain, held): same_batches(a, b)
    assert plain.train.rng.getstate() == held.train.rng.getstate()
    for f in (pngs/'a'/'00.png', PILImage.create(pngs/'b'/'01.png')):
        assert torch.allclose(plain.test_dl([f]).one_batch()[0], held.test_dl([f]).one_batch()[0], atol=1e-5)
    a, b = plain.test_dl(plain.valid_ds.items, with_labels=True).one_batch(), held.test_dl([(f, Path(f).parent.name) for f in plain.valid_ds.items], with_labels=True).one_batch()
    assert torch.equal(a[0], b[0]) and torch.equal(a[1], b[1])


@pytest.mark.slow
def test_in_memory_augments(pngs):
    "Crops and flips in training; the validation images are those of the plain loaders"
    plain = plain_dls(pngs, item_tfms=[CropPad(20), RandomCrop(16), FlipItem()], shuffle=False, drop_last=False)
    held = in_memory(plain)
    assert [type(f) for f in held.train.after_batch.fs[:2]] == [CropBatch, FlipBatch] and held.train_ds.x.shape[1:] == (3, 20, 20)
    same_batches(plain.valid, held.valid)
    assert not torch.equal(held.train.one_batch()[0], held.train.one_batch()[0])
    def seen(dl): return {o.numpy().tobytes() for _ in range(200) for o in dl.one_batch()[0][:2]}
    random.seed(0); torch.manual_seed(0)
    dls = [in_memory(plain_dls(pngs, batch_tfms=[], item_tfms=[CropPad(18), RandomCrop(16), FlipItem()], shuffle=False)) , plain_dls(pngs, batch_tfms=[], item_tfms=[CropPad(18), RandomCrop(16), FlipItem()], shuffle=False)]
    a, b = (seen(o.train) for o in dls)
    assert a == b and len(a) == 2*9*2  # the very same 3*3*2 versions of both images


def test_in_memory_leaves_the_original_alone(pngs):
    plain = plain_dls(pngs)
    before, held = [f for f in plain.train.after_batch.fs], in_memory(plain)
    assert all(f is g for f, g in zip(before, plain.train.after_batch.fs)) and not {*map(id, before)} & {*map(id, held.train.after_batch.fs)}
    learn = Learner(held, nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 3)), metrics=accuracy)
    with learn.no_bar(), learn.no_logging():
        learn.fit(1)
        assert learn.predict(pngs/'a'/'00.png')[0] in 'abc'


def test_in_memory_grey_and_workers(pngs):
    block = DataBlock((ImageBlock(PILImageBW), CategoryBlock), get_items=get_image_files, get_y=parent_label, splitter=IndexSplitter(range(10)))
    plain = block.dataloaders(pngs, bs=10, num_workers=2)
    held = in_memory(plain)
    assert held.train_ds.x.shape == (50, 1, 16, 16) and held.train_ds.img_cls is TensorImageBW and held.train.fake_l.num_workers == 0
    same_batches(plain.valid, held.valid)


class Strange(Transform):
    def encodes(self, x: PILImage): return x


@pytest.mark.parametrize('kwargs,name', [
    (dict(item_tfms=RandomResizedCrop(16)), 'RandomResizedCrop'), (dict(item_tfms=Strange()), 'Strange'), (dict(item_tfms=[Resize(8, 'squish', p=.5)]), 'Resize.* with p=0.5'),
    (dict(item_tfms=Resize((8, 12))), "Resize with method 'crop': it takes a random part of .*png, which has 16x16 pixels"),
    (dict(item_tfms=Resize((8, 12), 'pad')), "Resize with method 'pad': it takes a random part"),
    (dict(item_tfms=[CropPad(19)]), 'CropPad: it would not put .*png'), (dict(item_tfms=RandomCrop(17)), 'RandomCrop to 17x17: it is larger than the images'),
    (dict(bs=None, drop_last=False), 'bs=None'), (dict(create_item=lambda i: None), "create_item"), (dict(before_batch=Strange()), 'Strange'),
    (dict(dl_type=WeightedDL, wgts=np.ones(45)), 'WeightedDL')], ids=lambda o: o if isinstance(o, str) else '')
def test_in_memory_refuses_by_name(pngs, kwargs, name):
    if 'dl_type' in kwargs or 'before_batch' in kwargs or 'create_item' in kwargs or kwargs.get('bs', 0) is None:
        plain = plain_dls(pngs)
        if 'dl_type' in kwargs: plain.loaders[0] = plain.train.new(cls=WeightedDL, wgts=np.ones(45))
        else: plain.loaders[0] = plain.train.new(**kwargs)
    else: plain = plain_dls(pngs, **kwargs)
    with pytest.raises(ValueError, match=f'in_memory cannot translate .*{name}'): in_memory(plain)


def mkdirs(path): path.mkdir(exist_ok=True); return path


def test_in_memory_refuses_other_targets_and_sizes(pngs, tmp_path):
    block = DataBlock((ImageBlock, MultiCategoryBlock), get_items=get_image_files, get_y=lambda f: [f.parent.name], splitter=IndexSplitter(range(10)))
    with pytest.raises(ValueError, match='MultiCategorize|EncodedMulti|OneHotEncode'): in_memory(block.dataloaders(pngs, bs=10, num_workers=0))
    for i in range(4): Image.new('RGB', (16 + (i == 3), 16)).save(mkdirs(tmp_path/'ab'[i % 2])/f'{i}.png')
    with pytest.raises(ValueError, match=r'3.png has \(3, 16, 17\): add a Resize|but .*png has'): in_memory(ImageDataLoaders.from_folder(tmp_path, valid_pct=.25, seed=1, bs=1, num_workers=0))
