"Imagewoof, CUB-200, Stanford Dogs, ImageNet: miniatures in the true layout, crops, and the installed ones for real"
import functools, os, pickletools, random, re, shutil, zipfile
from pathlib import Path
import matplotlib.pyplot as plt, numpy as np, pytest, torch
from PIL import Image
from torch import nn
from fastai.vision.all import (CrossEntropyLossFlat, Learner, Normalize, PILImage, Pipeline, RandomResizedCrop, TensorCategory, TensorImage, URLs, fastai_path, first,
                               get_image_files, imagenet_stats, load_learner, tensor, untar_data)
from focusnet_fastai.data.image_files import class_files
from focusnet_fastai.data.memory import InMemoryLoaders
from focusnet_fastai.data.photos import (cub200_dls, imagenet_dls, imagenet_dogs_dls, imagewoof_breeds, imagewoof_dls, photo_tfms,
                                         stanford_dogs_dls)
from helpers import fresh
from helpers.miniatures import FOLDERS, mini_cub, mini_dogs, miniature, quietly, save

pytestmark = pytest.mark.filterwarnings('ignore:.*Table 1 of the paper')

ROOT = Path(__file__).resolve().parents[2]
INSTALLED = fastai_path('data')/'imagewoof2-160'
needs_imagewoof = pytest.mark.skipif(not INSTALLED.is_dir(), reason="Imagewoof is not installed (fastai's untar_data(URLs.IMAGEWOOF_160) fetches it)")
BREEDS = ['Shih-Tzu', 'Rhodesian ridgeback', 'Beagle', 'English foxhound', 'Border terrier', 'Australian terrier', 'Golden retriever',
          'Old English sheepdog', 'Samoyed', 'Dingo']  # Figure 1 of the paper, indices 0..9


def test_a_photo_that_is_no_image_is_named(woof):
    path = woof.parent/'damaged'
    shutil.copytree(woof, path)
    bad = first(get_image_files(path/'val'))
    bad.write_bytes(bad.read_bytes()[:700])
    dls = imagewoof_dls(path=path, num_workers=0, size=32)
    with pytest.raises(ValueError, match=re.escape(f'The file {bad} cannot be read as an image')): list(dls.valid)


def test_layout_errors(tmp_path):
    cub = mini_cub(tmp_path/'cub', (1, 1))
    assert cub200_dls(path=cub, num_workers=0).c == cub200_dls(path=cub/'CUB_200_2011', num_workers=0).c == 200
    gone = first(get_image_files(cub)); gone.unlink()
    with pytest.raises(FileNotFoundError, match=re.escape(f'There is no file {gone}, although it is listed')): cub200_dls(path=cub)
    split = cub/'CUB_200_2011'/'train_test_split.txt'
    split.write_text(split.read_text() + '7\n')
    with pytest.raises(ValueError, match=re.escape(f'Line 401 of {split} has 1 columns instead of 2')): cub200_dls(path=cub)
    split.unlink()
    with pytest.raises(FileNotFoundError, match=re.escape(str(split))): cub200_dls(path=cub)
    dogs = mini_dogs(tmp_path/'dogs')
    (dogs/'test_list.mat').write_bytes(b'no matlab')
    with pytest.raises(ValueError, match=re.escape(f"The file {dogs/'test_list.mat'} is no list of Stanford Dogs")): stanford_dogs_dls(path=dogs)


def test_imagenet(inet):
    with pytest.warns(UserWarning, match='1,000 training images instead of 1,281,167, 1,000 validation images instead of 50,000'): dls = imagenet_dls(inet, size=32, num_workers=0)
    assert dls.c == 1000 and dls.vocab[0] == 'tench' and dls.vocab[151] == 'Chihuahua' and dls.vocab[268] == 'Mexican hairless' and dls.train.bs == 256
    assert [Path(dls.valid_ds.items[i]).parent.name for i in (151, 268)] == ['n02085620', 'n02113978'] and int(dls.valid_ds[268][1]) == 268
    with pytest.raises(ValueError, match='1,000 training images instead of 1,281,167'): imagenet_dls(inet, strict=True)


def test_imagenet_dogs(inet, tmp_path):
    make = functools.partial(imagenet_dogs_dls, inet, cache=tmp_path)
    with pytest.warns(UserWarning, match='118 training images instead of 147,873, 118 validation images instead of 5,900 '): dls = make()
    assert dls.c == 118 and dls.vocab[0] == 'Chihuahua' and dls.vocab[-1] == 'Mexican hairless' and dls.train_ds.x.shape == (118, 3, 64, 64)
    assert dls.train.after_batch.fs[0].pad == 8 and {o.name for o in tmp_path.iterdir()} == {'imagenet-dogs-train.npz', 'imagenet-dogs-val.npz'}
    file = first(get_image_files(inet/'val'/'n02085620'))
    small = torch.from_numpy(np.asarray(Image.open(file).resize((64, 64), Image.Resampling.BOX)).copy()).permute(2, 0, 1)
    assert torch.equal(dls.valid_ds.x[0], small) and torch.equal(dls.valid_ds.test_set([file]).x[0], small)
    assert torch.equal(make().train_ds.x, dls.train_ds.x)


def test_imagenet_errors(inet, tmp_path):
    with pytest.raises(FileNotFoundError, match='There is no folder .*train: ImageNet needs train and val'): imagenet_dls(tmp_path)
    (tmp_path/'train').mkdir()
    with pytest.raises(FileNotFoundError, match='train has no class folders'): imagenet_dls(tmp_path)
    (tmp_path/'train'/'n01440764').mkdir()
    with pytest.raises(FileNotFoundError, match='has no breed of dogs'): imagenet_dogs_dls(tmp_path)
    with pytest.raises(ValueError, match='holds no images'): imagenet_dls(tmp_path)
    save(tmp_path/'train'/'n01440764'/'a.JPEG'); save(tmp_path/'val'/'a.JPEG')
    with pytest.raises(FileNotFoundError, match='There is no folder .*val.n01440764'): imagenet_dls(tmp_path)


def offline(home):
    "An environment in which every download is refused by a real, closed port, and fastai's folder is `home`"
    proxy = {k: 'http://127.0.0.1:9' for k in ('http_proxy', 'https_proxy', 'HTTP_PROXY', 'HTTPS_PROXY')}
    env = {k: v for k, v in os.environ.items() if k.lower() != 'no_proxy'}
    return {**env, **proxy, 'FASTAI_HOME': str(home), 'PYTHONPATH': str(ROOT)}


def test_breeds():
    assert list(imagewoof_breeds) == FOLDERS and list(imagewoof_breeds.values()) == BREEDS


def test_imagewoof_miniature(woof):
    dls = imagewoof_dls(size=64, bs=10, path=woof, num_workers=0)
    assert (len(dls.train_ds), len(dls.valid_ds), dls.c) == (30, 20, 10) and list(dls.vocab) == BREEDS
    x, y = dls.one_batch()
    assert (type(x), tuple(x.shape), type(y)) == (TensorImage, (10, 3, 64, 64), TensorCategory)
    for ds in (dls.train_ds, dls.valid_ds):
        assert all(FOLDERS[int(y)] == Path(f).parent.name for f, (_, y) in zip(ds.items, ds))
    assert {Path(f).parent.parent.name for f in dls.train_ds.items} == {'train'} and {Path(f).parent.parent.name for f in dls.valid_ds.items} == {'val'}
    assert dls.train_ds.items == sorted(dls.train_ds.items)
    assert isinstance(Learner(dls, nn.Linear(1, 1)).loss_func, CrossEntropyLossFlat)
    dls.show_batch(); plt.close('all')
    norm = first(f for f in dls.after_batch.fs if isinstance(f, Normalize))
    assert np.allclose(norm.mean.flatten(), imagenet_stats[0]) and np.allclose(norm.std.flatten(), imagenet_stats[1])


def test_imagewoof_passes_arguments_on(woof):
    dls = imagewoof_dls(size=32, bs=4, path=str(woof), num_workers=0, val_bs=7, shuffle=False, drop_last=False, device='cpu')
    assert (dls.train.bs, dls.valid.bs, dls.train.shuffle, dls.train.drop_last, dls.train.fake_l.num_workers) == (4, 7, False, False, 0)
    assert torch.equal(dls.one_batch()[1], tensor([0, 0, 0, 1])) and str(dls.device) == 'cpu'
    assert imagewoof_dls(size=(32, 48), bs=4, path=woof, num_workers=0).one_batch()[0].shape[-2:] == (32, 48)
    crop = first(f for f in imagewoof_dls(path=woof, min_scale=.5, num_workers=0).after_item.fs if isinstance(f, RandomResizedCrop))
    assert crop.min_scale == .5


def test_imagewoof_with_workers(woof):
    dls = imagewoof_dls(size=32, bs=10, path=woof, num_workers=2)
    assert sorted(torch.cat([y for _, y in dls.train]).tolist()) == sorted([*range(10)]*3)


def test_training_is_random_and_validation_is_not(woof):
    dls = imagewoof_dls(size=32, bs=20, path=woof, num_workers=0, shuffle=False)
    assert not torch.equal(dls.train.one_batch()[0], dls.train.one_batch()[0])
    assert torch.equal(dls.valid.one_batch()[0], dls.valid.one_batch()[0])


def test_flips_and_crops(woof):
    "Half of the training pictures are mirrored; crops cover min_scale..1 of the area and move about"
    ramp = np.tile(np.arange(160, dtype=np.uint8)[None, :, None], (120, 1, 3))
    im = PILImage.create(ramp)
    pipe, still = (Pipeline(dl.after_item.fs, split_idx=i) for i, dl in enumerate(imagewoof_dls(size=32, path=woof, num_workers=0)))
    crop = first(f for f in pipe.fs if isinstance(f, RandomResizedCrop))
    random.seed(0)
    flips, areas, lefts = [], [], []
    for _ in range(400):
        a = pipe(im)[0].float()
        flips.append(bool(a[:, 0].mean() > a[:, -1].mean())); areas.append(np.prod(crop.cp_size)/(160*120)); lefts.append(crop.tl[0])
    assert .42 < np.mean(flips) < .58
    assert .34 < min(areas) < .4 and max(areas) > .9 and len(set(lefts)) > 30
    assert all(torch.equal(still(im), still(im)) and still(im)[0, 0, 0] < still(im)[0, 0, -1] for _ in range(20))


@pytest.mark.parametrize('wh,size', [((200, 160), 128), ((160, 333), 128), ((160, 160), 64), ((500, 375), 224), ((90, 70), 128), ((200, 160), (64, 96))])
def test_centre_crop(wh, size):
    "As torchvision's Resize to 256/224 of the size on the shorter side, then CenterCrop, and no proportions changed"
    import torchvision.transforms as T
    h, w = (size, size) if isinstance(size, int) else size
    yy, xx = np.mgrid[:wh[1], :wh[0]]
    im = PILImage.create(np.stack([xx*255/wh[0], yy*255/wh[1], 0*xx], -1).astype(np.uint8))
    ours = np.asarray(Pipeline(photo_tfms(size), split_idx=1)(im)).astype(float)
    assert ours.shape == (h, w, 3)
    scale = min(wh[0]/w, wh[1]/h)*224/256  # pixels of the photograph for one of the result
    for axis, (n, whole) in enumerate(((w, wh[0]), (h, wh[1]))):  # the colours tell where a pixel comes from
        seen = ours[..., axis].mean(axis)*whole/255
        assert abs(seen.mean() - whole/2) < 2.5 and abs((seen[-1] - seen[0])/(n - 1) - scale) < .03*scale
    if h == w:
        theirs = np.asarray(T.Compose([T.Resize(round(size*256/224)), T.CenterCrop(size)])(Image.fromarray(np.asarray(im)))).astype(float)
        assert np.abs(ours - theirs).max() < 6 and np.abs(ours - theirs).mean() < 1.5


def test_imagewoof_export(woof, tmp_path):
    learn = Learner(imagewoof_dls(size=32, bs=10, path=woof, num_workers=0), nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 10)))
    file = get_image_files(woof/'val')[3]
    want = quietly(learn, learn.predict, file)
    assert want[0] in BREEDS
    learn.export(tmp_path/'dogs.pkl')
    again = load_learner(tmp_path/'dogs.pkl')
    got = quietly(again, again.predict, PILImage.create(file))
    assert got[0] == want[0] and torch.allclose(got[2], want[2])


def test_imagewoof_wrong_folders(tmp_path):
    with pytest.raises(FileNotFoundError, match='There is no folder .*nowhere'): imagewoof_dls(path=tmp_path/'nowhere')
    path = miniature(tmp_path/'woof', n=(1, 1), size=(20, 16))
    files = class_files(path, imagewoof_breeds)
    assert [len(o) for o in files] == [10, 10]
    (path/'train'/'.ipynb_checkpoints').mkdir()
    assert class_files(path, imagewoof_breeds) == files
    (path/'val'/'n00000000').mkdir()
    with pytest.raises(ValueError, match='Unknown class folder .*woof.val.n00000000'): imagewoof_dls(path=path)
    (path/'val'/'n00000000').rmdir()
    image = first(get_image_files(path/'val'/FOLDERS[3]))
    image.rename(image.with_suffix('.txt'))
    with pytest.raises(ValueError, match=f"woof.val.{FOLDERS[3]} of the class 'English foxhound' holds no images"): imagewoof_dls(path=path)
    image.with_suffix('.txt').unlink(); image.parent.rmdir()
    with pytest.raises(FileNotFoundError, match=f"There is no folder .*woof.val.{FOLDERS[3]} for the class 'English foxhound'"): imagewoof_dls(path=path)
    (path/'val').rename(path/'valid')
    with pytest.raises(FileNotFoundError, match='There is no folder .*woof.val$'): imagewoof_dls(path=path)


@pytest.mark.slow
def test_without_a_network(tmp_path):
    "An installed set is found without a download; a missing one says what to put where"
    home = miniature(tmp_path/'data'/'imagewoof2-160', n=(1, 1), size=(20, 16))
    code = f"""
from focusnet_fastai.all import *
import pathlib
print(len(imagewoof_dls(num_workers=0, strict=False).valid_ds), flush=True)
pathlib.Path({str(home)!r}).rename({str(tmp_path/'elsewhere')!r})
imagewoof_dls(num_workers=0)"""
    out = fresh.python(code, env=offline(tmp_path))
    assert out.stdout.split()[0] == '10' and out.returncode == 1, out.stderr
    last = out.stderr.strip().splitlines()[-1]
    assert 'Could not fetch https://' in last and f"save the archive as {tmp_path/'archive'/'imagewoof2-160.tgz'}" in last, last


@needs_imagewoof
def test_imagewoof_real():
    "All photographs, on two short batches"
    assert untar_data(URLs.IMAGEWOOF_160) == INSTALLED
    dls = imagewoof_dls(bs=16, num_workers=0)
    assert (len(dls.train_ds), len(dls.valid_ds)) == (9025, 3929) and list(dls.vocab) == BREEDS
    counts = np.bincount([FOLDERS.index(Path(f).parent.name) for f in dls.train_ds.items])
    assert counts[3] == 580 and counts.min() == 580  # English foxhound has the fewest
    for dl in dls:
        x, y = dl.one_batch()
        assert x.shape == (16, 3, 128, 128) and abs(x.mean()) < 1 and .5 < x.std() < 2
    learn = Learner(dls, nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 10)))
    name, idx, probs = quietly(learn, learn.predict, dls.valid_ds.items[0])
    assert name == BREEDS[int(idx)] and abs(probs.sum() - 1) < 1e-5


# -- a learner that travels -------------------------------------------------------------------------------------------

ELSEWHERE = """
import sys
import numpy as np
from PIL import Image
from fastai.vision.all import load_learner
file, *learners = sys.argv[1:]
for o in learners:
    try: learn = load_learner(o)
    except Exception as e: print(type(e).__name__, e); continue
    im = Image.open(file)
    with learn.no_bar():
        for p in (file, im, im.convert('RGBA'), np.array(Image.open(file).convert('RGB'))): print(*learn.predict(p)[2].tolist())
    learn.export('again.pkl')
    again = load_learner('again.pkl')
    with again.no_bar(): print(*again.predict(file)[2].tolist())
"""


def pickled_names(file):
    "Modules and names that a pickle inside PyTorch's zip refers to"
    with zipfile.ZipFile(file) as z: data = z.read(first(o for o in z.namelist() if o.endswith('data.pkl')))
    return [arg for op, arg, _ in pickletools.genops(data) if op.name == 'GLOBAL']


@pytest.mark.slow
def test_an_exported_learner_travels(woof, tmp_path):
    "It loads with fastai alone, holds no path of this system, and turns, converts and scales pictures as here; a learner in memory says what it needs"
    photo = corners_lying(tmp_path/'phone.jpg')
    learn = Learner(imagewoof_dls(size=32, bs=10, path=woof, num_workers=0), nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, 10)))
    learn.export(tmp_path/'photos.pkl')
    x, y = torch.zeros(4, 1, 8, 8), [0, 1, 0, 1]
    Learner(InMemoryLoaders.from_tensors((x, y), (x, y), 'ab', bs=2), nn.Sequential(nn.Flatten(), nn.Linear(64, 2))).export(tmp_path/'memory.pkl')
    names = pickled_names(tmp_path/'photos.pkl')
    assert not [o for o in names if 'Path' in o and 'PathLike' not in o or 'focusnet' in o], names
    want = quietly(learn, learn.predict, photo)[2].tolist()
    assert np.abs(np.array(want) - quietly(learn, learn.predict, PILImage.create(Image.open(photo).transpose(Image.Transpose.ROTATE_180)))[2].numpy()).max() > 1e-4
    out = fresh.python(ELSEWHERE, photo, tmp_path/'photos.pkl', tmp_path/'memory.pkl', cwd=tmp_path, without='focusnet_fastai')
    *answers, last = out.stdout.splitlines()
    assert len(answers) == 5, out.stdout + out.stderr[-3000:]
    for i in (0, 1, 2, 4): assert np.allclose([float(o) for o in answers[i].split()], want, atol=1e-6)
    assert last == 'RuntimeError this learner was exported with focusnet_fastai, which is not installed here: pip install focusnet_fastai'


def corners_lying(f):
    "A photograph from a telephone held sideways"
    a = np.zeros((80, 120, 3), np.uint8)
    a[:40, :, 0], a[:, 60:, 1] = 250, 250
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(a).save(f, exif=exif, quality=95)
    return f


def test_augmented_predictions(woof):
    "Test-time augmentation crops and flips; the loaders are left as they were"
    learn = Learner(imagewoof_dls(size=32, bs=10, path=woof, num_workers=0), nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(48, 10)))
    with learn.no_bar():
        plain, again = [learn.get_preds()[0] for _ in range(2)]
        assert not torch.allclose(learn.tta(n=2)[0], plain) and torch.equal(plain, again) and torch.equal(learn.get_preds()[0], plain)


def test_a_photo_that_vanishes_is_named(woof, tmp_path):
    path = shutil.copytree(woof, tmp_path/'woof')
    dls = imagewoof_dls(path=path, num_workers=1, size=32)
    gone = Path(dls.valid_ds.items[0])
    gone.unlink()
    with pytest.raises(FileNotFoundError) as e: list(dls.valid)
    assert str(e.value).strip().splitlines()[-1] == f'FileNotFoundError: There is no file {gone}'
