"A folder of photographs of one's own"
import functools, os, random, shutil, subprocess, sys, warnings
from pathlib import Path
import numpy as np, pytest, torch
from PIL import Image
from torch import nn
from fastai.vision.all import Learner, PILImage, first, load_learner
from focusnet_fastai.data.folder import folder_dls
from helpers.miniatures import quietly, save

own = functools.partial(folder_dls, size=32, num_workers=0)


def test_folder_dls(photos):
    (photos/'.DS_Store').write_text(''); (photos/'apple'/'Thumbs.db').write_text(''); (photos/'.cache').mkdir(); (photos/'readme.txt').write_text('mine')
    with warnings.catch_warnings():
        warnings.simplefilter('error', UserWarning)
        dls = own(photos)
    assert list(dls.vocab) == ['apple', 'pear', 'plum'] and (len(dls.train_ds), len(dls.valid_ds)) == (24, 6) and dls.left_out == {} and dls.train.bs == 24
    assert np.bincount([int(y) for _, y in dls.valid_ds]).tolist() == [2, 2, 2] and not set(dls.train_ds.items) & set(dls.valid_ds.items)
    assert all(dls.vocab[int(y)] == Path(f).parent.name for f, (_, y) in zip(dls.train_ds.items, dls.train_ds))
    state = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    assert own(photos).valid_ds.items == dls.valid_ds.items and own(photos, seed=1).valid_ds.items != dls.valid_ds.items
    assert len(own(photos, valid_pct=.5).valid_ds) == 15 and len(own(photos, valid_pct=.01).valid_ds) == 3 and len(own(photos, valid_pct=.99).train_ds) == 3
    assert torch.equal(state[0], torch.get_rng_state()) and state[2] == np.random.get_state()[1].tolist()
    x, y = dls.one_batch()
    assert x.shape == (24, 3, 32, 32)
    learn = Learner(dls, nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 3)))
    want = quietly(learn, learn.predict, photos/'pear'/'3.jpg')
    learn.export(photos.parent/'x.pkl')
    again = load_learner(photos.parent/'x.pkl')
    for o in (photos/'pear'/'3.jpg', PILImage.create(photos/'pear'/'3.jpg')): assert torch.allclose(quietly(again, again.predict, o)[2], want[2])


@pytest.mark.parametrize('names', [('train', 'valid'), ('training', 'val'), ('Train', 'Test')])
def test_folder_dls_with_a_split(photos, names):
    for s, k in zip(names, (6, 3)):
        for c in 'ab':
            for i in range(k): save(photos.parent/'split'/s/c/f'{i}.png', seed=100*k + 10*'ab'.index(c) + i)
    dls = own(photos.parent/'split')
    assert (len(dls.train_ds), len(dls.valid_ds)) == (12, 6) and {Path(f).parent.parent.name for f in dls.valid_ds.items} == {names[1]}
    (photos.parent/'split'/names[1]/'b').rename(photos.parent/'split'/names[1]/'c')
    with pytest.raises(ValueError, match=f'There is a class folder .*{names[0]}.b, but no .*{names[1]}.b'): own(photos.parent/'split')
    shutil.rmtree(photos.parent/'split'/names[1])
    assert len(own(photos.parent/'split').train_ds) == 10  # drawn from train


def test_damaged_photos_are_listed_and_left_out(photos):
    "Text, nothing, half a JPEG, half a PNG, a JPEG whose end is missing"
    whole = (photos/'apple'/'1.jpg').read_bytes()
    big = np.random.RandomState(0).randint(0, 256, (300, 400, 3)).astype(np.uint8)
    Image.fromarray(big).save(photos/'pear'/'big.jpg'); Image.fromarray(big).save(photos/'pear'/'big.png')
    bad = {photos/'apple'/'1.jpg': b'no image', photos/'apple'/'2.jpg': b'', photos/'plum'/'3.jpg': whole[:len(whole)//2]}
    for f in (photos/'pear'/'big.jpg', photos/'pear'/'big.png'): bad[f] = f.read_bytes()[:-3000]
    for f, data in bad.items(): f.write_bytes(data)
    with pytest.warns(UserWarning) as record: dls = own(photos)
    text = str(first(o for o in record if 'left out' in str(o.message)).message)
    assert text.startswith('5 of 32 photos cannot be read and are left out:\n') and all(f'  {f}: ' in text for f in bad)
    assert set(dls.left_out) == set(bad) and all(dls.left_out.values())
    used = {*dls.train_ds.items, *dls.valid_ds.items}
    assert len(used) == 27 and not used & set(bad)
    for dl in dls: list(dl)
    for f in (photos/'plum').iterdir(): f.write_text('no image')
    with pytest.warns(UserWarning), pytest.raises(ValueError, match="No photo of the class 'plum' can be read: .*plum.*jpg"): own(photos)


def test_folder_dls_errors(photos, tmp_path):
    with pytest.raises(FileNotFoundError, match='There is no folder .*nowhere'): own(tmp_path/'nowhere')
    with pytest.raises(NotADirectoryError, match='0.jpg is a file, not a folder'): own(photos/'apple'/'0.jpg')
    (tmp_path/'void').mkdir()
    with pytest.raises(FileNotFoundError, match='void has no class folders'): own(tmp_path/'void')
    with pytest.raises(ValueError, match='photo .*apple.0.jpg lies in no class folder'): own(photos/'apple')
    (photos/'pear'/'more').mkdir()
    with pytest.raises(ValueError, match='There is a folder .*pear.more within the class folder'): own(photos)
    (photos/'pear'/'more').rmdir(); (photos/'fig').mkdir()
    with pytest.raises(ValueError, match='The class folder .*fig is empty'): own(photos)
    save(photos/'fig'/'only.jpg')
    with pytest.raises(ValueError, match="The class 'fig' needs at least two different photos.*only.jpg"): own(photos)
    for c in ('fig', 'pear', 'plum'): shutil.rmtree(photos/c)
    with pytest.raises(ValueError, match="has one class only, 'apple'"): own(photos)
    for i in range(2): save(photos/'fig'/f'{i}.jpg', seed=50 + i)
    with pytest.raises(ValueError, match='valid_pct must lie between 0 and 1, but is 20'): own(photos, valid_pct=20)


def told(path, **kwargs):
    "Loaders, and what was told about the folder"
    with warnings.catch_warnings(record=True) as w:
        warnings.simplefilter('always')
        dls = own(path, **kwargs)
    return dls, '\n'.join(str(o.message) for o in w if o.category is UserWarning)


def fill(path, n=4, seed=0, ending='.png'):
    for i in range(n): save(path/f'{seed+i}{ending}', (20, 16), seed=seed + i)


def test_other_files_are_left_out(photos):
    "Notes, films and files without an ending are told and listed; they are no loss of photographs"
    for name in ('notes.txt', 'film.mp4', 'none'): (photos/'pear'/name).write_text('x')
    dls, text = told(photos)
    assert len(dls.train_ds) == 24 and '3 files are left out:' in text
    assert {f.name: why for f, why in dls.left_out.items()} == {'notes.txt': 'no photograph (.txt)', 'film.mp4': 'no photograph (.mp4)', 'none': 'no photograph (no ending)'}
    for f in (photos/'pear').glob('*.jpg'): f.unlink()
    with pytest.raises(ValueError, match='pear holds no photos, only files like film.mp4'): own(photos)


def test_photos_without_a_reader(photos):
    "Told with the reason and the way out; refused where a class loses more than half, unless told otherwise"
    for i in range(4): (photos/'plum'/f'{i}.jpg').rename(photos/'plum'/f'{i}.nef')
    dls, text = told(photos)
    assert "4 of 30 photos cannot be read" in text and "no reader for a camera's raw files: convert it to JPEG" in text and len(dls.left_out) == 4
    for i in range(4, 6): (photos/'plum'/f'{i}.jpg').write_bytes(b'\0\0\0\x18ftypheic' + bytes(99))
    with pytest.warns(UserWarning), pytest.raises(ValueError, match="6 of 10 photos of the class 'plum' cannot be read .*max_left_out=1"): own(photos)
    assert len(told(photos, max_left_out=1)[0].left_out) == 6


def test_copies_stay_on_one_side(photos):
    "Copies under other names, also with another note of the camera, are found by content"
    for i in range(4):
        for k in range(3): shutil.copy(photos/'apple'/f'{i}.jpg', photos/'apple'/f'copy{k} of {i}.jpg')
    data, exif = (photos/'apple'/'9.jpg').read_bytes(), Image.Exif()
    exif[0x010F] = 'a camera'
    note = exif.tobytes()
    (photos/'apple'/'noted.jpg').write_bytes(data[:2] + b'\xff\xe1' + (len(note) + 2).to_bytes(2, 'big') + note + data[2:])
    for seed in range(6):
        dls, text = told(photos, seed=seed)
        sides = [{Path(f).read_bytes()[-200:] for f in ds.items} for ds in (dls.train_ds, dls.valid_ds)]
        assert not sides[0] & sides[1] and dls.left_out == {} and '5 photos are there more than once' in text
        assert len(dls.train_ds) + len(dls.valid_ds) == 43


def test_a_photo_in_two_classes(photos):
    shutil.copy(photos/'apple'/'3.jpg', photos/'pear'/'again.jpg')
    dls, text = told(photos)
    assert [[f.name for f in fs] for fs in dls.disputed] == [['3.jpg', 'again.jpg']] and '1 photos lie in several classes' in text
    assert len(dls.train_ds) + len(dls.valid_ds) == 31 and dls.left_out == {}
    dls, _ = told(photos, drop_disputed=True)
    assert len(dls.train_ds) + len(dls.valid_ds) == 29 and set(dls.left_out.values()) == {'the same photo lies in several classes'}


def test_photos_of_the_validation_leave_the_training(tmp_path):
    for k, c in enumerate('ab'):
        fill(tmp_path/'train'/c, 4, 100*k); fill(tmp_path/'val'/c, 2, 100*k + 50)
    shutil.copy(tmp_path/'val'/'a'/'50.png', tmp_path/'train'/'a'/'x.png')
    dls, text = told(tmp_path)
    assert (len(dls.train_ds), len(dls.valid_ds)) == (8, 4) and list(dls.left_out.values()) == [f"the same photo as {tmp_path/'val'/'a'/'50.png'}"] and 'also validate' in text


@pytest.mark.parametrize('other,line', [('test', 'not sorted into class folders'), ('extra', 'it holds no class folders')])
def test_folders_beside_train(tmp_path, other, line):
    "What is not used is told, and an unlabelled folder is no reason to stop"
    for k, c in enumerate('ab'): fill(tmp_path/'train'/c, 4, 100*k)
    fill(tmp_path/other, 2, 900)
    dls, text = told(tmp_path)
    assert len(dls.train_ds) + len(dls.valid_ds) == 8 and f'{tmp_path/other}: ' in text and line in text
    for k, c in enumerate('ab'): fill(tmp_path/'dev'/c, 1, 100*k + 50); fill(tmp_path/'old'/c, 1, 100*k + 70)
    dls, text = told(tmp_path)
    assert {Path(f).parent.parent.name for f in dls.valid_ds.items} == {'dev'} and f"{tmp_path/'old'}: folders for validation are called valid, validation, val, dev" in text


def test_train_as_the_name_of_a_class(tmp_path):
    for k, c in enumerate(('train', 'bus', 'test')): fill(tmp_path/c, 4, 100*k)
    dls, text = told(tmp_path)
    assert list(dls.vocab) == ['bus', 'test', 'train'] and not text


def test_one_name_in_two_forms(tmp_path):
    "macOS and Linux write an accent differently: one class all the same"
    nfc, nfd = 'caf\u00e9', 'cafe\u0301'
    for s, name, k in (('train', nfc, 0), ('train', 'tea', 100), ('valid', nfd, 200), ('valid', 'tea', 300)): fill(tmp_path/s/name, 3, k)
    dls, text = told(tmp_path)
    assert list(dls.vocab) == [nfc, 'tea'] and not text and [int(y) for _, y in dls.valid_ds] == [0, 0, 0, 1, 1, 1]


@pytest.mark.skipif(sys.platform != 'linux', reason='names without an encoding are found on Linux')
def test_a_folder_name_that_is_no_utf8(tmp_path):
    "Its class can be printed, exported and predicted; messages too"
    strange = tmp_path/'photos'/os.fsdecode(b'caf\xe9')
    fill(strange, 5); fill(tmp_path/'photos'/'tea', 5, 100)
    (strange/os.fsdecode(b'n\xf6te.txt')).write_text('x')
    dls, text = told(tmp_path/'photos')
    assert list(dls.vocab) == ['caf\u00e9', 'tea'] and text.encode()
    learn = Learner(dls, nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2)))
    name = quietly(learn, learn.predict, first(strange.glob('*.png')))[0]
    learn.export(tmp_path/'x.pkl')
    assert name in dls.vocab and list(load_learner(tmp_path/'x.pkl').dls.vocab) == list(dls.vocab)
    (strange/'more').mkdir()
    with pytest.raises(ValueError) as e: own(tmp_path/'photos')
    assert str(e.value).encode()


@pytest.mark.slow
def test_endings_do_not_depend_on_the_machine(tmp_path):
    "What Pillow can open is a photograph, also where the system has no table of endings (fastai's own list is made from that)"
    for k, (c, ending) in enumerate((('a', '.webp'), ('b', '.jfif'))): fill(tmp_path/c, 4, 100*k, ending)
    code = f"""
import mimetypes
mimetypes.knownfiles = []; mimetypes.init([])
for o in list(mimetypes.types_map): mimetypes.types_map.pop(o)
from focusnet_fastai.data.folder import folder_dls
print(len(folder_dls({str(tmp_path)!r}, size=16, num_workers=0).train_ds))"""
    out = subprocess.run([sys.executable, '-W', 'ignore', '-c', code], capture_output=True, text=True)
    assert out.stdout.split() == ['6'], out.stderr[-2000:]
