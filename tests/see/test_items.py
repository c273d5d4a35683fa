"What to look at: items in every form, larger pictures, damaged files, and the images that tell the most"
import numpy as np, pytest, torch, warnings
from PIL import Image
from torch import nn
from fastai.vision.all import (CategoryBlock, DataBlock, DataLoaders, ImageBlock, ImageDataLoaders, IndexSplitter, Learner, Normalize,
                               PILImageBW, Resize, get_image_files, imagenet_stats, parent_label, set_seed)
from focusnet_fastai.data.folder import folder_dls
from focusnet_fastai.loss import multi_warm_label
from focusnet_fastai.see.maps import enlarged
from focusnet_fastai.see.items import read_scenes
from focusnet_fastai.see.picking import dl_logits, fixed_images, pick_scenes, scenes_a, scenes_bc
from helpers.figures import logits, png


def test_items_in_every_form(base, valid, tmp_path):
    "One image as index, file, text, folder, PIL image, array, tensor, pair, and index of another dl"
    zb, _, ys = valid
    i, y = 7, int(ys[7])
    f = png(tmp_path/str(y), i, base.dls)
    x = base.dls.valid_ds[i][0]
    pil = Image.open(f)
    forms = {'index': i, 'tensor of an index': torch.tensor(i), 'file': f, 'text': str(f), 'folder': f.parent, 'list': [f], 'pil': pil, 'PILImageBW': PILImageBW.create(f),
             'array': np.asarray(pil), 'tensor': x, 'pair with name': (f, str(y)), 'pair with index': (x, y), 'item of a dataset': base.dls.valid_ds[i]}
    for k, o in forms.items():
        s = read_scenes(base, o)
        assert s.xb.shape==(1, 1, 32, 32) and s.images.shape==(1, 32, 32, 3), k
        known = k not in ('pil', 'PILImageBW', 'array', 'tensor')
        assert s.targets==[y if known else -1], k
        np.testing.assert_allclose(logits(base.model, s.xb), zb[[i]], atol=.15, err_msg=k)      # a file holds bytes
    assert read_scenes(base, [pil, f], targets=[str(y), None]).targets==[y, -1]
    x0, y0 = base.dls.train_ds[3]
    s = read_scenes(base, [3], dl=base.dls.train)
    assert s.targets==[int(y0)] and np.allclose(s.images[0, ..., 0], x0[0], atol=1e-6)
    assert read_scenes(base, [9, 4, 9]).targets==[int(ys[k]) for k in (9, 4, 9)]


def test_what_items_are_not(base, tmp_path):
    (tmp_path/'empty').mkdir()
    x = base.dls.valid_ds[0][0]
    for items, error, words in (([], ValueError, 'items` is empty'), (797, IndexError, 'holds 797 images'), (-1, IndexError, 'no image -1'), (.5, TypeError, 'float'),
                                (tmp_path/'no.png', FileNotFoundError, 'no.png'), (tmp_path/'empty', ValueError, 'holds no images'), ([3, x], TypeError, 'not both'),
                                ([(x, 'dog')], ValueError, "'dog' is none of the 10 classes"), ([(x, 10)], ValueError, '10'), ([(x, 1, 2)], ValueError, '3 parts')):
        with pytest.raises(error, match=words): read_scenes(base, items)
    with pytest.raises(ValueError, match='1 items, but 2 targets'): read_scenes(base, x, targets=[1, 2])


def test_a_learner_with_training_images_only(base):
    "Indices need a loader then, pictures the transforms of one; a loader that is given does"
    learn = Learner(DataLoaders(base.dls.train), base.model, loss_func=base.loss_func)
    for items in (0, base.dls.valid_ds[0][0]):
        with pytest.raises(ValueError, match='no validation set'): read_scenes(learn, items)
    assert torch.equal(read_scenes(learn, 3, dl=base.dls.valid).xb, read_scenes(base, 3).xb)


def test_pictures_of_a_folder_learner(tmp_path):
    "Three channels, files read by a DataBlock: normalised for the network, not for the eye; random crops stay out"
    g = np.random.default_rng(0)
    for c in ('cat', 'dog'):
        for k in range(4):
            (tmp_path/c).mkdir(exist_ok=True)
            Image.fromarray(g.integers(0, 255, (40, 40, 3), dtype='uint8')).save(tmp_path/c/f'{k}.png')
    files = get_image_files(tmp_path).sorted()
    dls = DataBlock((ImageBlock, CategoryBlock), get_y=parent_label, splitter=IndexSplitter([0, 4]), item_tfms=Resize(32, method='squish'),
                    batch_tfms=Normalize.from_stats(*imagenet_stats)).dataloaders(files, bs=4, num_workers=0)
    set_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2))
    cnn = Learner(dls, net)
    s = read_scenes(cnn, files[:2])
    want = np.stack([np.asarray(Image.open(f).resize((32, 32), Image.BILINEAR)) for f in files[:2]])/255
    np.testing.assert_allclose(s.images, want, atol=.01)
    mean, sd = (np.array(o) for o in imagenet_stats)
    np.testing.assert_allclose(s.xb.movedim(1, -1), (want-mean)/sd, atol=.05)
    assert s.targets==[0, 0] and read_scenes(cnn, [0]).targets==[int(dls.valid_ds[0][1])]
    assert read_scenes(cnn, [0], dl=dls.train).xb.shape==(1, 3, 32, 32)
    array, pil = np.array(Image.open(files[0])), Image.open(files[0])
    for o in (array, pil, torch.as_tensor(array).movedim(-1, 0)): np.testing.assert_allclose(read_scenes(cnn, o).images[0], s.images[0], atol=.02)


def two_classes(path, n=12, size=40):
    "A folder of pictures in two classes"
    for k, c in enumerate(('cat', 'dog')):
        (path/c).mkdir(exist_ok=True)
        for i in range(n):
            x, y = np.meshgrid(np.linspace(0, 1, size), np.linspace(0, 1, size))
            im = Image.fromarray((np.stack([x**(1+i/3), y, (x+y*k)/2], -1)*255).astype('uint8'))
            im.save(path/c/f'{i:02}.png')
    return path


def tiny(dls):
    set_seed(0)
    return Learner(dls, nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2)))


def loaders(path, **kw):
    return {'fastai': lambda: ImageDataLoaders.from_folder(path, valid_pct=.5, seed=0, item_tfms=Resize(16), bs=4, num_workers=0, **kw),
            'folder_dls': lambda: folder_dls(path, size=16, bs=4, num_workers=0)}


@pytest.mark.parametrize('kind', ['fastai', 'folder_dls'])
def test_larger_pictures(kind, tmp_path):
    "With `zoom` the files are read again, with more detail than the normal batch has, and the eye sees them too"
    l = tiny(loaders(two_classes(tmp_path, size=96))[kind]())
    for items in ([0, 2], get_image_files(tmp_path).sorted()[:2]):
        s, plain = read_scenes(l, items, zoom=3), read_scenes(l, items)
        assert s.xb.equal(plain.xb) and s.targets==plain.targets and plain.large is None
        assert s.large.shape==(2, 3, 48, 48) and s.images.shape==(2, 48, 48, 3) and plain.images.shape==(2, 16, 16, 3)
        small = nn.functional.interpolate(s.large, size=(16, 16), mode='bilinear', antialias=True, align_corners=False)
        torch.testing.assert_close(small, s.xb, atol=.15, rtol=0)
        assert not torch.allclose(s.large, enlarged(s.xb, 3), atol=1e-3)
        assert read_scenes(l, items).xb.equal(plain.xb)                              # the loader's own transforms are as before


def test_stored_images_are_enlarged(base):
    s = read_scenes(base, [5, 9], zoom=2)
    torch.testing.assert_close(s.large, enlarged(s.xb, 2))
    assert s.images.shape==(2, 64, 64, 3)
    with pytest.raises(ValueError, match='zoom'): read_scenes(base, [5], zoom=.5)


@pytest.mark.parametrize('kind', ['fastai', 'folder_dls'])
@pytest.mark.parametrize('mode', ['RGBA', 'P', 'L', 'CMYK', '16 bit', 'turned', 'lazy'])
def test_pictures_of_all_modes(kind, mode, tmp_path):
    "A picture gives the same batch as its file, whatever its mode; a phone's photograph stands upright"
    l = tiny(loaders(two_classes(tmp_path))[kind]())
    f = get_image_files(tmp_path).sorted()[1]
    rgb, g = Image.open(f).convert('RGB'), tmp_path/'other.tiff'
    if mode=='16 bit': im = Image.fromarray(np.asarray(rgb.convert('L')).astype('uint16')*257)
    elif mode=='turned':
        im, exif = rgb.transpose(Image.Transpose.ROTATE_90), Image.Exif()
        exif[0x0112] = 6
        im.save(g, exif=exif)
    else: im = rgb if mode=='lazy' else rgb.convert(mode)
    if mode!='turned': im.save(g)
    by_file, by_picture = read_scenes(l, g), read_scenes(l, Image.open(g))
    torch.testing.assert_close(by_file.xb, by_picture.xb, atol=.02, rtol=0)
    want = read_scenes(l, rgb.convert('L') if mode in ('L', '16 bit') else rgb).xb
    torch.testing.assert_close(by_file.xb, want, atol=.25 if mode=='P' else .1, rtol=0)


@pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')  # fastai's own loader leaves a damaged file open
@pytest.mark.parametrize('kind', ['fastai', 'folder_dls'])
def test_damaged_files_are_named(kind, tmp_path):
    "By index and by name, in figures and where images are chosen"
    l = tiny(loaders(two_classes(tmp_path))[kind]())
    f = l.dls.valid_ds.items[1]
    f.write_bytes(f.read_bytes()[:90])
    for call in (lambda: read_scenes(l, [0, 1]), lambda: read_scenes(l, f), lambda: pick_scenes(l), lambda: fixed_images(l, tiny(l.dls).model)):
        with pytest.raises(ValueError, match=f'{f.name} cannot be read as an image'): call()
    assert read_scenes(l, [0, 2]).xb.shape[0]==2
    f.unlink()
    with pytest.raises((ValueError, FileNotFoundError), match=f.name): read_scenes(l, [1])


def test_a_folder_by_what_pillow_opens(tmp_path, monkeypatch):
    "Endings come from Pillow, not from the machine's list"
    import mimetypes
    monkeypatch.setattr(mimetypes, 'types_map', {})
    l = tiny(loaders(two_classes(tmp_path))['fastai']())
    (tmp_path/'more').mkdir()
    for e in ('webp', 'jfif'): Image.new('RGB', (20, 20)).save(tmp_path/'more'/f'a.{e}', format=dict(jfif='jpeg').get(e))
    (tmp_path/'more'/'notes.txt').write_text('no picture')
    assert read_scenes(l, tmp_path/'more').xb.shape[0]==2


def test_fixed_images_by_confidence(base, learn, valid):
    zb, z, y = valid
    mine = [i for i in range(len(y)) if zb[i].argmax()!=y[i] and z[i].argmax()==y[i]]
    mine.sort(key=lambda i: -zb[i].softmax(0).max().item())
    assert len(mine)>=4 and fixed_images(learn, base)==mine
    train = fixed_images(learn, base, base.dls.train)                                # in the order of the dataset although it is shuffled
    for i in train:
        s = read_scenes(base, [i], dl=base.dls.train)
        assert logits(base.model, s.xb).argmax()!=s.targets[0] and logits(learn.model, s.xb).argmax()==s.targets[0]


# ---- the paper's scenes

def test_scenes_by_definition(base, valid):
    "A: the true class and two others with positive logits. B and C: one class, different labels"
    zb, _, y = valid
    warm = multi_warm_label(zb, y)>0
    for rule, n in (('positive', 3), ('positive', 5), ('released', 3)):
        picked = pick_scenes(base, n, rule=rule)
        warm = multi_warm_label(zb, y, rule)>0
        *front, b, c = picked
        assert len(set(picked))==n and not picked.missing
        for i in front: assert zb[i, y[i]]>0 and (zb[i]>0).sum()>=3
        assert y[b]==y[c] and (warm[b]!=warm[c]).any()
        assert len({int(y[i]) for i in [*front, b]})==n-1
        assert picked==pick_scenes(base, n, rule=rule)
    assert len(pick_scenes(base, 1))==1 and len(pick_scenes(base, 2))==2
    b, c = pick_scenes(base, 2)
    assert y[b]==y[c]
    few = [i for i in scenes_a(zb, y)[:5]]
    assert all((zb[i]>0).sum()<=5 for i in few)


class Says(nn.Module):
    "A network whose logits are a table, looked up by the first pixel"
    def __init__(self, table):
        super().__init__()
        self.table = nn.Parameter(torch.tensor(table))
    def forward(self, x): return self.table[(x[:,0,0,0]*100).round().long()]


def says(table, y):
    from focusnet_fastai.data.memory import InMemoryLoaders
    x = torch.arange(len(y))[:, None, None, None].float().expand(-1, 1, 4, 4)/100
    dls = InMemoryLoaders.from_tensors((x, torch.tensor(y)), (x, torch.tensor(y)), list('abcd'), bs=3)
    return Learner(dls, Says(table))


def test_scenes_that_are_not_there():
    "No positive logits anywhere, as in a street scene: not Scene A; one label for each class: not B and C; both said"
    l = says([[-1., -2, -3, -4], [-3., -1, -3, -4], [-3., -3., -1, -4]], [0, 1, 2])
    with pytest.warns(UserWarning, match='at least two others.*different multi-warm labels'): picked = pick_scenes(l, 3)
    assert len(picked)==3 and len(picked.missing)==2
    z, y = dl_logits(l, l.dls.valid)
    assert scenes_a(z, y)==[] and scenes_bc(z, y, multi_warm_label(z, y)>0)==[]
    l = says([[3., 2, 1, -1], [3., -2, 1, -1], [3., 2, -1, -1], [1., 4, -1, -1]], [0, 0, 0, 1])
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        picked = pick_scenes(l, 2)
    assert picked==[1, 2] or picked==[2, 1]                                        # these share only their own class
    with pytest.warns(UserWarning) as w: assert len(pick_scenes(says([[3., 2, -1, -1], [2., 3, -1, -1]], [0, 1]), 2))==2
    assert len(w)==1
