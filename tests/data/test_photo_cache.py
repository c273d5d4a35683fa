"Photographs decoded once: the same pictures, whatever happens to the file, the photographs or the process."
import os, pickle, random, shutil, signal, time
from pathlib import Path
import numpy as np, pytest, torch
from PIL import Image
from fastai.vision.all import FlipItem, L, Learner, RandomResizedCrop, Rotate, TfmdDL, WeightedDL, load_learner, nn

from helpers.learners import quiet
from focusnet_fastai.data.folder import folder_dls
from focusnet_fastai.data.photo_cache import cached_photos, KeptPhotosDL
from focusnet_fastai.data.picture_file import described, descriptions, PictureFile, record, reduced, stored_side, stored_size
from focusnet_fastai.lab.training import image_subset


def picture(i, size=(90, 60)):
    "Soft stripes and a bright upper left corner"
    x, y = np.meshgrid(np.linspace(0, 6, size[0]), np.linspace(0, 4, size[1]))
    a = np.stack([120+90*np.sin(x*(i % 3+1)), 120+90*np.cos(y+i), 20*x+10*(i % 7)], -1)
    a[:size[1]//3, :size[0]//3] = 250
    return Image.fromarray(a.clip(0, 255).astype(np.uint8))


@pytest.fixture
def photos(tmp_path):
    "Twelve photographs of two classes, of several sizes"
    for i in range(12):
        f = tmp_path/f'photos/{"ab"[i%2]}/{i}.png'
        f.parent.mkdir(parents=True, exist_ok=True)
        picture(i, [(90, 60), (60, 90), (64, 64)][i % 3]).save(f)
    return tmp_path/'photos'


def loaders(photos, size=32, workers=0, **kw): return folder_dls(photos, size=size, bs=4, num_workers=workers, device='cpu', **kw)
def images(dl): return torch.cat([b[0] for b in dl])
def rows(dls): return [o for dl in dls.loaders for o in dl.pictures.rows.values()]
def filled(dls): return [dls.train.pictures.file.get(o) is not None for o in rows(dls)]


def size_of(f):
    with Image.open(f) as im: return im.size


def hidden(photos):
    "Nothing can be read any more"
    return photos.rename(photos.with_name('hidden'))


def test_validation_is_bit_equal_and_read_once(photos, tmp_path):
    plain = loaders(photos)
    kept = cached_photos(plain, tmp_path/'kept')
    want = images(plain.valid)
    assert torch.equal(images(kept.valid), want) and torch.equal(images(kept.valid), want)
    hidden(photos)
    assert torch.equal(images(kept.valid), want)


@pytest.mark.parametrize('size', [32, 64])
def test_training_crops_are_those_of_fastai(photos, tmp_path, size):
    "With the same random numbers, a photograph that is kept as it is gives Pillow's crop within rounding"
    plain = loaders(photos, size, min_scale=.2)
    kept = cached_photos(plain, tmp_path/'kept')
    crop, differences = kept.train.pictures.crop, []
    for f, im in zip(plain.train_ds.items, plain.train_ds.tls[0]):
        size = size_of(f)
        if stored_size(*size, kept.train.pictures.side) != size: continue
        random.seed(1)
        want = np.asarray(crop(im, split_idx=0)).astype(int)
        random.seed(1)
        got = kept.train.pictures.window(kept.train.pictures.picture(f)).permute(1, 2, 0).numpy()
        differences.append(np.abs(want-got).max())
    assert differences and max(differences) <= 1


def test_flips(photos, tmp_path):
    kept = cached_photos(loaders(photos), tmp_path/'kept').train.pictures
    f = next(iter(kept.rows))
    assert kept.p_flip == .5
    kept.p_flip = 1.; random.seed(0); a = kept.image(f)
    kept.p_flip = 0.; random.seed(0); b = kept.image(f)
    assert torch.equal(a.flip(-1), b) and not torch.equal(a, b)


def test_labels_belong_to_images(photos, tmp_path):
    kept = cached_photos(loaders(photos), tmp_path/'kept')
    x, y = zip(*[(b[0], b[1]) for b in kept.valid])
    assert torch.cat(y).tolist() == [int(o[1]) for o in kept.valid_ds]
    assert [kept.vocab[int(o)] for o in torch.cat(y)] == [f.parent.name for f in kept.valid_ds.items]


@pytest.mark.parametrize('orientation', range(1, 9))
def test_orientation(tmp_path, orientation):
    "Upright, as kept and as not kept, small and from a camera"
    back = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # Pillow's operations that undo them
    for i in range(4):
        f = tmp_path/f'photos/{"ab"[i%2]}/{i}.jpg'
        f.parent.mkdir(parents=True, exist_ok=True)
        im, ex = picture(i, (90, 60) if i < 2 else (480, 320)), Image.Exif()
        ex[0x0112] = orientation
        (im.transpose(Image.Transpose(back[orientation])) if orientation > 1 else im).save(f, exif=ex, quality=98)
        assert described(f)[1:] == im.size
        small = reduced(f, 40)
        assert small.size == (60, 40)
        assert np.abs(np.asarray(small).astype(int)-np.asarray(im.resize((60, 40), Image.Resampling.BILINEAR))).mean() < 4
    plain = loaders(tmp_path/'photos', valid_pct=.5)
    assert torch.equal(images(cached_photos(plain, tmp_path/'kept').valid), images(plain.valid))


def test_large_photographs_are_kept_small(tmp_path):
    f = tmp_path/'a.jpg'
    im = picture(3, (1600, 1200))
    im.save(f, quality=95)
    want = np.asarray(im.resize((160, 120), Image.Resampling.BILINEAR)).astype(int)
    diff = np.abs(np.asarray(reduced(f, 120))-want)
    assert diff.mean() < 1 and np.percentile(diff, 99) < 12
    assert stored_side(128, .35) == 217 and stored_side(128, .01) == 256 and stored_size(50, 40, 217) == (50, 40)


@pytest.mark.parametrize('mode', ['L', 'P', 'RGBA', 'LA', 'CMYK', 'I;16'])
def test_modes(tmp_path, mode):
    for i in range(4):
        f = tmp_path/f'photos/{"ab"[i%2]}/{i}.{"tif" if mode in ("CMYK", "I;16") else "png"}'
        f.parent.mkdir(parents=True, exist_ok=True)
        if mode == 'I;16': Image.fromarray((np.asarray(picture(i).convert('L')).astype(np.uint16)*257)).save(f)
        else: picture(i).convert(mode).save(f)
    plain = loaders(tmp_path/'photos', valid_pct=.5)
    assert torch.equal(images(cached_photos(plain, tmp_path/'kept').valid), images(plain.valid))


def test_keyed_by_content(photos, tmp_path):
    "Copied and renamed photographs are found; a changed one is not, though its size and name stay"
    kept = cached_photos(loaders(photos, valid_pct=.01), tmp_path/'kept')
    images(kept.train); [kept.train.pictures.picture(f) for f in kept.train_ds.items]
    shutil.copytree(photos, tmp_path/'copy')
    (tmp_path/'copy/a/0.png').rename(tmp_path/'copy/a/100.png')
    other = cached_photos(loaders(tmp_path/'copy', valid_pct=.01), tmp_path/'kept')
    known = set(kept.train.pictures.rows.values())
    assert len(set(other.train.pictures.rows.values()) - known) <= 2  # those that were for validation before
    f = tmp_path/'copy/b/1.png'
    before = other.train.pictures.picture(f).copy() if f in other.train.pictures.rows else None
    picture(8, size_of(f)).save(f)
    again = cached_photos(loaders(tmp_path/'copy', valid_pct=.01), tmp_path/'kept')
    assert np.array_equal(again.train.pictures.picture(f), np.asarray(reduced(f, again.train.pictures.side)))
    assert before is None or not np.array_equal(before, again.train.pictures.picture(f))


def test_keyed_by_size(photos, tmp_path):
    small, large = cached_photos(loaders(photos, 16), tmp_path/'kept'), cached_photos(loaders(photos, 40), tmp_path/'kept')
    assert images(small.valid).shape[-1] == 16 and images(large.valid).shape[-1] == 40
    assert torch.equal(images(large.valid), images(loaders(photos, 40).valid))
    assert not set(rows(small)) & set(rows(large))
    wider = cached_photos(loaders(photos, 16, min_scale=.9), tmp_path/'kept')
    assert not set(wider.train.pictures.rows.values()) & set(rows(small))


def test_workers_share_the_file(photos, tmp_path):
    "What a worker process keeps is there for all; other start methods are in tests/data/test_start_methods.py"
    dls = cached_photos(folder_dls(photos, size=32, bs=2, num_workers=1, device='cpu'), tmp_path/'kept')
    n = sum(len(b[0]) for b in dls.train)
    file = dls.train.pictures.file
    assert n == 10 and all(file.get(o) is not None for o in dls.train.pictures.rows.values())


def test_killed_while_filling(photos, tmp_path):
    "SIGKILL at many moments: what is there afterwards is right"
    want = images(loaders(photos).valid)
    for i in range(6):
        pid = os.fork()
        if pid == 0:
            try:
                dls = cached_photos(loaders(photos), tmp_path/'kept')
                [dls.train.pictures.picture(f) for f in dls.train_ds.items]
                images(dls.valid)
            finally: os._exit(0)
        time.sleep(.003*i)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        dls = cached_photos(loaders(photos), tmp_path/'kept')
        for f in dls.train_ds.items:
            a = dls.train.pictures.picture(f)
            assert np.array_equal(a, np.asarray(reduced(f, dls.train.pictures.side)))
        assert torch.equal(images(dls.valid), want)
        if i == 2: shutil.rmtree(tmp_path/'kept')


@pytest.mark.parametrize('what', ['bytes', 'table', 'table cut', 'bytes cut', 'memo', 'all gone'])
def test_damage_is_noticed(photos, tmp_path, what):
    dls = cached_photos(loaders(photos), tmp_path/'kept')
    want, files = images(dls.valid), dls.train_ds.items
    whole = [dls.train.pictures.picture(f).copy() for f in files]
    b, t = tmp_path/'kept/pictures.bytes', tmp_path/'kept/pictures.table'
    if what == 'bytes': b.write_bytes(bytes(255-o for o in b.read_bytes()))
    elif what == 'table': t.write_bytes(os.urandom(t.stat().st_size))
    elif what == 'table cut': os.truncate(t, 3*record.itemsize+7)
    elif what == 'bytes cut': os.truncate(b, 100)
    elif what == 'memo': [o.write_text('{"a": ') for o in (tmp_path/'kept').glob('*.json')]
    else: shutil.rmtree(tmp_path/'kept')
    again = cached_photos(loaders(photos), tmp_path/'kept')
    assert torch.equal(images(again.valid), want)
    for f, a in zip(files, whole): assert np.array_equal(again.train.pictures.picture(f), a)


def test_bound(photos, tmp_path):
    dls = cached_photos(loaders(photos), tmp_path/'kept', max_gb=50_000/1e9)
    n = len(rows(dls))
    assert 0 < n < 12 and (tmp_path/'kept/pictures.bytes').stat().st_size <= 50_000
    assert torch.equal(images(dls.valid), images(loaders(photos).valid)) and len(images(dls.train)) == 8
    assert sum(filled(dls)) <= n
    other = cached_photos(loaders(photos, 24), tmp_path/'kept', max_gb=50_000/1e9)  # pictures of the other size make room
    assert rows(other) and (tmp_path/'kept/pictures.bytes').stat().st_size <= 50_000
    assert torch.equal(images(dls.valid), images(loaders(photos).valid))  # who still has the old file reads on


def test_two_at_a_time(photos, tmp_path):
    a, b = cached_photos(loaders(photos), tmp_path/'kept'), cached_photos(loaders(photos, 48), tmp_path/'kept')
    assert torch.equal(images(a.valid), images(loaders(photos).valid)) and torch.equal(images(b.valid), images(loaders(photos, 48).valid))
    assert not set(rows(a)) & set(rows(b))
    c = cached_photos(loaders(photos), tmp_path/'kept')
    hidden(photos)
    assert len(images(c.valid)) == len(images(a.valid))


def test_no_room_on_the_disk(photos, tmp_path, monkeypatch):
    dls = cached_photos(loaders(photos), tmp_path/'kept')
    def full(self, *args): raise OSError(28, 'No space left on device')
    monkeypatch.setattr(PictureFile, 'write', full)
    with pytest.warns(UserWarning, match='No space left'): got = images(dls.valid)
    assert torch.equal(got, images(loaders(photos).valid))


def test_folder_that_cannot_be_written(photos, tmp_path):
    (tmp_path/'kept').touch()
    plain = loaders(photos)
    with pytest.warns(UserWarning, match='Pictures cannot be kept'): assert cached_photos(plain, tmp_path/'kept') is plain


def test_a_damaged_photograph_is_named(photos, tmp_path):
    dls = cached_photos(loaders(photos), tmp_path/'kept')
    f = dls.valid_ds.items[0]
    f.write_bytes(b'nothing')
    with pytest.raises(ValueError, match=f.name): images(dls.valid)
    assert described(f) is None
    again = cached_photos(dls, tmp_path/'kept')
    assert f not in again.valid.pictures.rows


def test_other_loaders_are_refused(photos, tmp_path):
    dls = loaders(photos)
    dls.train.after_item.add(Rotate())
    with pytest.raises(ValueError, match='Rotate'): cached_photos(dls, tmp_path/'kept')
    dls = loaders(photos)
    dls.loaders[0] = dls.train.new(cls=WeightedDL, wgts=np.ones(len(dls.train_ds)))
    with pytest.raises(ValueError, match='WeightedDL'): cached_photos(dls, tmp_path/'kept')


def net(): return nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2))


def test_a_learner_with_kept_photographs(photos, tmp_path):
    "Trains, predicts files and pictures, exports plain loaders, takes parts of the data"
    dls = cached_photos(loaders(photos), tmp_path/'kept')
    learn = Learner(dls, net())
    with quiet(learn):
        learn.fit(1)
        p, y = learn.get_preds()
        q, _ = learn.get_preds(dl=loaders(photos).valid)
        assert torch.equal(p, q)
        f = dls.valid_ds.items[0]
        assert torch.allclose(learn.predict(f)[2], p[0], atol=1e-6)
        learn.path = tmp_path
        learn.export('a.pkl')
        again = load_learner(tmp_path/'a.pkl')
        with again.no_bar(): assert torch.allclose(again.predict(f)[2], p[0], atol=1e-6)
    assert type(again.dls.train) is TfmdDL and b'photo_cache' not in (tmp_path/'a.pkl').read_bytes()
    assert type(dls.test_dl([f])) is TfmdDL
    part = image_subset(dls, 6)
    assert type(part.train) is KeptPhotosDL and len(part.train_ds) == 6 and len(part.train.one_batch()[0]) == 4
    assert dls.train.n_inp == 1 and dls.vocab == ['a', 'b'] and dls.left_out == {}


def test_order_follows_the_seed(photos, tmp_path):
    def epoch():
        random.seed(3); torch.manual_seed(3); np.random.seed(3)
        dls = cached_photos(loaders(photos), tmp_path/'kept')
        return images(dls.train)
    assert torch.equal(epoch(), epoch())


def test_pickled_small(photos, tmp_path):
    dls = cached_photos(loaders(photos), tmp_path/'kept')
    images(dls.valid)
    file = pickle.loads(pickle.dumps(dls.train.pictures.file))
    assert len(pickle.dumps(dls.train.pictures.file)) < 500 and len(file.table) == 12


def test_descriptions_are_kept(photos, tmp_path, monkeypatch):
    files = L(photos.rglob('*.png')).sorted()
    a = descriptions(files, tmp_path/'memo.json')
    def never(f): raise AssertionError(f)
    monkeypatch.setattr('focusnet_fastai.data.picture_file.described', never)
    assert {f: list(o) for f, o in a.items()} == descriptions(files, tmp_path/'memo.json')
