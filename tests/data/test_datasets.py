"The data sets: miniatures in the true layout, served over HTTP and unpacked by the real code; the installed ones for real; folders of one's own photographs."
import functools, hashlib, http.server, itertools, os, pickle, random, re, shutil, subprocess, sys, tarfile, threading, warnings, zipfile
from pathlib import Path

import numpy as np, pytest, torch
import matplotlib.pyplot as plt
from PIL import Image
from scipy.io import savemat
from torch import nn
from torchvision.datasets import CIFAR100
import fastai.vision.all as fv
from fastai.data.external import fastai_cfg
from fastai.vision.all import (Learner, Normalize, PILImage, Pipeline, TensorCategory, TensorImage, TensorImageBW, URLs, CrossEntropyLossFlat, cifar_stats,
                               fastai_path, first, get_image_files, imagenet_stats, load_learner, set_seed, tensor, untar_data)

from focusnet_fastai.data import archives as archive_files, folder, photos as photo_sets, small
from focusnet_fastai.data.memory import CropBatch, FlipBatch, InMemoryLoaders
from focusnet_fastai.data.small import cifar100_dls, cifar10_classes, cifar10_dls, mnist_dls, tiny_imagenet_dls, tiny_imagenet_url
from focusnet_fastai.data.archives import check_archive, class_files, read_pixels
from focusnet_fastai.data.folder import folder_dls
from focusnet_fastai.data.photos import (cub200_dls, imagenet_dls, imagenet_dogs_dls, imagewoof_breeds, imagewoof_dls, RandomOrCentreCrop, stanford_dogs_dls,
    stanford_dogs_url)

pytestmark = pytest.mark.filterwarnings('ignore:.*Table 1 of the paper')
ROOT = Path(__file__).resolve().parent.parent
INSTALLED = fastai_path('data')/'imagewoof2-160'
needs_imagewoof = pytest.mark.skipif(not INSTALLED.is_dir(), reason="Imagewoof is not installed (fastai's untar_data(URLs.IMAGEWOOF_160) fetches it)")
BREEDS = ['Shih-Tzu', 'Rhodesian ridgeback', 'Beagle', 'English foxhound', 'Border terrier', 'Australian terrier', 'Golden retriever',
          'Old English sheepdog', 'Samoyed', 'Dingo']  # Figure 1 of the paper, indices 0..9
FOLDERS = ['n02086240', 'n02087394', 'n02088364', 'n02089973', 'n02093754', 'n02096294', 'n02099601', 'n02105641', 'n02111889', 'n02115641']

def installed(name): return pytest.mark.skipif(not (fastai_path('data')/name).is_dir(), reason=f"{name} is not installed in {fastai_path('data')}")


def quietly(learn, f, *args, **kwargs):
    with learn.no_bar(): return f(*args, **kwargs)


def save(path, size=(8, 8), mode='RGB', seed=0, **kwargs):
    "A generated image; its first pixel is at least 100 in every channel"
    path.parent.mkdir(parents=True, exist_ok=True)
    a = np.random.RandomState(seed).randint(100, 256, (size[1], size[0], *[3][:mode == 'RGB'])).astype(np.uint8)
    Image.fromarray(a).save(path, **kwargs)
    return a


# -- miniatures in the true layout ------------------------------------------------------------------------------------

def mini_mnist(path):
    for s, n in (('training', 2), ('testing', 1)):
        for c in range(10):
            for i in range(n): save(path/s/f'{c}'/f'{100*c + i}.png', (28, 28), 'L', c)
    return path


def mini_cifar10(path):
    for s, n in (('train', 2), ('test', 1)):
        for i, c in enumerate(cifar10_classes):
            for j in range(n): save(path/s/c/f'{j}_{c}.png', (32, 32), seed=i)
    (path/'labels.txt').write_text('\n'.join(cifar10_classes))
    return path


def mini_cifar100(path):
    "The three pickles of the original"
    path.mkdir(parents=True)
    names = [f'class_{i:02}' for i in range(100)]
    rng = np.random.RandomState(0)
    for s, n in (('train', 200), ('test', 100)):
        d = {'data': rng.randint(0, 256, (n, 3072)).astype(np.uint8), 'fine_labels': [i % 100 for i in range(n)], 'coarse_labels': [0]*n, 'filenames': ['']*n}
        (path/s).write_bytes(pickle.dumps(d, 2))
    (path/'meta').write_bytes(pickle.dumps({'fine_label_names': names, 'coarse_label_names': ['all']}, 2))
    return path


def mini_cub(path, n=(2, 1)):
    "200 species; the original also has a file beside its folder"
    root, birds = path/'CUB_200_2011', [f'{i+1:03}.Bird_of_kind_{i}' for i in range(200)]
    (path/'attributes.txt').parent.mkdir(parents=True)
    (path/'attributes.txt').write_text('1 has_bill_shape::curved')
    files = [(f'{b}/{b[4:]}_{j:04}.jpg', i + 1, int(j < n[0])) for i, b in enumerate(birds) for j in range(sum(n))]
    for f, c, _ in files: save(root/'images'/f, (12, 10), seed=c)
    (root/'classes.txt').write_text(''.join(f'{i+1} {b}\n' for i, b in enumerate(birds)))
    (root/'images.txt').write_text(''.join(f'{i+1} {f}\n' for i, (f, *_) in enumerate(files)))
    (root/'image_class_labels.txt').write_text(''.join(f'{i+1} {c}\n' for i, (_, c, _) in enumerate(files)))
    (root/'train_test_split.txt').write_text(''.join(f'{i+1} {t}\n' for i, (*_, t) in enumerate(files)))
    return path


def mini_dogs(path):
    "Photographs in Images, lists beside it"
    dogs = [f'n020{85620+i}-Dog_no_{i}' for i in range(119)] + ['n02116738-African_hunting_dog']
    for s, n in (('train', 2), ('test', 1)):
        files = [f'{d}/{d[:9]}_{s}{j}.jpg' for d in dogs for j in range(n)]
        for f in files: save(path/'Images'/f, (12, 10))
        col = np.empty((len(files), 1), dtype=object); col[:, 0] = files
        savemat(path/f'{s}_list.mat', dict(file_list=col, annotation_list=col, labels=np.array([[dogs.index(f.split('/')[0]) + 1] for f in files])))
    return path


def mini_tiny(path):
    ids = [f'n{1443537+i:08}' for i in range(200)]
    for i, o in enumerate(ids):
        for j in range(2): save(path/'train'/o/'images'/f'{o}_{j}.JPEG', (64, 64), 'L' if i == 3 else 'RGB', i)  # some are grey
        (path/'train'/o/f'{o}_boxes.txt').write_text(f'{o}_0.JPEG\t0\t0\t62\t62\n')
        save(path/'val'/'images'/f'val_{i}.JPEG', (64, 64), seed=i)
    (path/'val'/'val_annotations.txt').write_text(''.join(f'val_{i}.JPEG\t{ids[199-i]}\t0\t32\t44\t62\n' for i in range(200)))
    save(path/'test'/'images'/'test_0.JPEG', (64, 64))
    (path/'wnids.txt').write_text('\n'.join(random.Random(0).sample(ids, 200)))
    (path/'words.txt').write_text(''.join(f"{o}\t{'crane' if i in (5, 9) else f'thing {i}'}, other word\n" for i, o in enumerate(ids)) + 'n99999999\tnot used\n')
    return path


def mini_imagenet(path, n=1):
    "A thousand classes; the dogs' numbers are those of their first and last breed"
    ids = [f'n{1440764+i:08}' for i in range(151)] + [f'n{2085620+i:08}' for i in range(117)] + ['n02113978'] + [f'n{2114367+i:08}' for i in range(731)]
    one = path/'one.JPEG'; save(one, (100, 70), quality=90)
    for s in ('train', 'val'):
        for o in ids:
            (path/s/o).mkdir(parents=True)
            for i in range(n): shutil.copy(one, path/s/o/f'{o}_{i}.JPEG')
    one.unlink()
    return path


# -- a real server ----------------------------------------------------------------------------------------------------

class Quiet(http.server.SimpleHTTPRequestHandler):
    cut = {}  # file name -> how many bytes really come before the connection breaks
    def log_message(self, *args): pass
    def copyfile(self, source, out):
        n = self.cut.get(self.path.split('/')[-1])
        if n is None: super().copyfile(source, out)
        else: out.write(source.read(n)); self.close_connection = True


@pytest.fixture(scope='module')
def server(tmp_path_factory):
    "Address and folder of an HTTP server on the loopback interface"
    root = tmp_path_factory.mktemp('served')
    srv = http.server.ThreadingHTTPServer(('127.0.0.1', 0), functools.partial(Quiet, directory=root))
    thread = threading.Thread(target=srv.serve_forever, daemon=True); thread.start()
    yield f'http://127.0.0.1:{srv.server_port}/', root
    srv.shutdown(); srv.server_close(); thread.join()


@pytest.fixture()
def home(tmp_path, monkeypatch):
    "An empty fastai folder"
    monkeypatch.setenv('FASTAI_HOME', str(tmp_path/'home'))
    monkeypatch.setenv('no_proxy', '127.0.0.1'); monkeypatch.setenv('NO_PROXY', '127.0.0.1')
    fastai_cfg.cache_clear()
    yield tmp_path/'home'
    fastai_cfg.cache_clear()


def md5(f): return hashlib.md5(f.read_bytes()).hexdigest()


def pack(archive, folder, name=None):
    "An archive whose top folder is `name`, or which holds what is in `folder`"
    if archive.suffix == '.zip':
        with zipfile.ZipFile(archive, 'w', zipfile.ZIP_DEFLATED) as z:
            for f in sorted(folder.rglob('*')): z.write(f, Path(name)/f.relative_to(folder))
    else:
        with tarfile.open(archive, 'w' if archive.suffix == '.tar' else 'w:gz') as t:
            for f in [folder] if name else sorted(folder.iterdir()): t.add(f, name or f.name)


@pytest.fixture(scope='module')
def archives(server, tmp_path_factory):
    "All archives, in the true layout"
    (_, root), src = server, tmp_path_factory.mktemp('src')
    pack(root/'mnist_png.tgz', mini_mnist(src/'mnist_png'), 'mnist_png')
    pack(root/'cifar10.tgz', mini_cifar10(src/'cifar10'), 'cifar10')
    pack(root/'imagewoof2-160.tgz', miniature(src/'imagewoof2-160', n=(2, 1), size=(40, 30)), 'imagewoof2-160')
    pack(root/'cifar-100-python.tar.gz', mini_cifar100(src/'cifar-100-python'), 'cifar-100-python')
    pack(root/'CUB_200_2011.tgz', mini_cub(src/'cub'))
    dogs = mini_dogs(src/'dogs')
    pack(root/'images.tar', dogs/'Images', 'Images')
    with tarfile.open(root/'lists.tar', 'w') as t:
        for s in ('train', 'test'): t.add(dogs/f'{s}_list.mat', f'{s}_list.mat')
    pack(root/'tiny-imagenet-200.zip', mini_tiny(src/'tiny'), 'tiny-imagenet-200')
    return src


@pytest.fixture()
def served(server, archives, monkeypatch, home):
    "All data sets come from the server"
    point(monkeypatch, server[0])
    c = archives/'cifar-100-python'
    monkeypatch.setattr(CIFAR100, 'tgz_md5', md5(server[1]/'cifar-100-python.tar.gz'))
    for name, f in (('train_list', 'train'), ('test_list', 'test')): monkeypatch.setattr(CIFAR100, name, [[f, md5(c/f)]])
    monkeypatch.setattr(CIFAR100, 'meta', {**CIFAR100.meta, 'md5': md5(c/'meta')})
    return home


def point(monkeypatch, url):
    for name, f in dict(MNIST='mnist_png', CIFAR='cifar10', IMAGEWOOF_160='imagewoof2-160', CUB_200_2011='CUB_200_2011').items(): monkeypatch.setattr(URLs, name, f'{url}{f}.tgz')
    monkeypatch.setattr(small, 'tiny_imagenet_url', f'{url}tiny-imagenet-200.zip')
    monkeypatch.setattr(photo_sets, 'stanford_dogs_url', url)
    monkeypatch.setattr(CIFAR100, 'url', f'{url}cifar-100-python.tar.gz')


SETS = { # function: archive, place of the archive below fastai's folder, miniature's classes and sizes, arguments, shape
    'mnist_dls': ('mnist_png.tgz', 'archive', (10, 20, 10), {}, (1, 32, 32)), 'cifar10_dls': ('cifar10.tgz', 'archive', (10, 20, 10), {}, (3, 32, 32)),
    'cifar100_dls': ('cifar-100-python.tar.gz', 'data/cifar100', (100, 200, 100), {}, (3, 32, 32)),
    'tiny_imagenet_dls': ('tiny-imagenet-200.zip', 'archive', (200, 400, 200), {}, (3, 64, 64)),
    'imagewoof_dls': ('imagewoof2-160.tgz', 'archive', (10, 20, 10), dict(size=24, num_workers=0), (3, 24, 24)),
    'cub200_dls': ('CUB_200_2011.tgz', 'archive', (200, 400, 200), dict(size=24, num_workers=0), (3, 24, 24)),
    'stanford_dogs_dls': ('images.tar', 'data/stanford_dogs/archive', (120, 240, 120), dict(size=24, num_workers=0), (3, 24, 24))}


@pytest.mark.parametrize('name', SETS)
def test_download_unpack_and_load(served, name):
    "The real way from a server to a batch; a second time nothing is fetched; other sizes than Table 1's are refused, or named in a warning"
    archive, _, sizes, kwargs, shape = SETS[name]
    make = functools.partial(globals()[name], bs=10, **kwargs)
    with pytest.raises(ValueError, match=f'has .*{sizes[1]} training images instead of .*{sizes[2]} validation images instead of .*Table 1 of the paper.*use strict=False'): make()
    with pytest.warns(UserWarning, match=f'{sizes[1]} training images instead of'): dls = make(strict=False)
    assert (dls.c, len(dls.train_ds), len(dls.valid_ds)) == sizes and len(set(dls.vocab)) == sizes[0]
    for dl in dls:
        x, y = dl.one_batch()
        assert x.shape == (10, *shape) and x.dtype == torch.float32 and type(y) is TensorCategory and x.isfinite().all()
    counts = [np.bincount([int(b) for _, y in dl.new(shuffle=False, drop_last=False) for b in y]) for dl in dls]
    assert [set(o) for o in counts] == [{2}, {1}]  # each class has two images and one image


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


def test_augmentation_as_in_the_paper(served):
    kinds = lambda dls: [type(f) for f in dls.train.after_batch.fs if type(f) in (CropBatch, FlipBatch)]
    assert kinds(mnist_dls(strict=False)) == []
    for f, pad in ((cifar10_dls, 4), (cifar100_dls, 4), (tiny_imagenet_dls, 8)):
        dls = f(strict=False)
        assert kinds(dls) == [CropBatch, FlipBatch] and dls.train.after_batch.fs[0].pad == pad and dls.train.bs == 128
        assert kinds(f(strict=False, pad=0, flip=0)) == []
    for f in (cub200_dls, stanford_dogs_dls):
        assert [type(o).__name__ for o in f(strict=False, num_workers=0).after_item.fs] == ['FlipItem', 'RandomOrCentreCrop', 'ToTensor']


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


@pytest.mark.parametrize('name', SETS)
def test_truncated_and_tampered_archives(served, server, name):
    "The error names the archive; nothing half-unpacked stays behind; a good copy then works"
    archive, place, _, kwargs, _ = SETS[name]
    good, file = (server[1]/archive).read_bytes(), served/place/archive
    make = functools.partial(globals()[name], strict=False, **kwargs)
    bad = bytearray(good); bad[len(bad)//2:len(bad)//2 + 200] = bytes(200)
    if archive == 'images.tar': bad[0:300] = b'x'*300  # a plain tar has a checksum of its headers only
    file.parent.mkdir(parents=True)
    for data in (good[:len(good)*6//10], bytes(bad), b'<html>404</html>'):
        if name == 'cifar100_dls': server_file = server[1]/archive; server_file.write_bytes(data)  # a local copy is checked, and replaced by the server's
        else: file.write_bytes(data)
        try:
            with pytest.raises(OSError, match=re.escape(str(file))): make()
        finally:
            if name == 'cifar100_dls': server_file.write_bytes(good)
        unpacked = {'cifar100_dls': 'cifar100/cifar-100-python', 'stanford_dogs_dls': 'stanford_dogs/data/images'}.get(name, archive.split('.')[0])
        assert not (served/'data'/unpacked).exists()
    file.unlink(missing_ok=True)
    assert make().c


def test_broken_connection(served, server):
    Quiet.cut['cifar10.tgz'] = 1000
    try:
        with pytest.raises(OSError, match='Could not fetch .*cifar10.tgz.*save the archive as .*cifar10.tgz'): cifar10_dls()
    finally: Quiet.cut.clear()
    assert not (served/'archive'/'cifar10.tgz').exists() and cifar10_dls(strict=False).c == 10


@pytest.mark.parametrize('kind', ['tar', 'tgz', 'zip'])
def test_an_archive_cut_or_changed_anywhere(tmp_path, kind):
    "What `tarfile` would take for the end of the archive is found: cuts at all places, at headers too, and changed headers"
    for i in range(12): save(tmp_path/'in'/f'{i}.png', seed=i)
    archive = tmp_path/f'a.{kind}'
    pack(archive, tmp_path/'in', 'in')
    check_archive(archive)
    good = archive.read_bytes()
    end = len(good) if kind != 'tar' else good.rindex(b'IEND') + 500  # what follows is padding
    for n in sorted({*range(0, end - 512, 97), *range(0, end - 512, 512), end - 512}):
        archive.write_bytes(good[:n])
        with pytest.raises(Exception): check_archive(archive)
    for n in range(0, end - 512, 512 if kind == 'tar' else 97):
        if kind == 'tar' and good[n+257:n+262] != b'ustar': continue  # a plain tar has no checksum of its contents
        changed = bytearray(good); changed[n:n+100] = bytes(255 - o for o in good[n:n+100])
        archive.write_bytes(changed)
        with pytest.raises(Exception): check_archive(archive)


@pytest.mark.parametrize('name', SETS)
def test_nobody_answers(home, monkeypatch, name):
    "A closed port: the error says which archive to put where"
    archive, place, *_ = SETS[name]
    point(monkeypatch, 'http://127.0.0.1:9/')
    with pytest.raises(OSError, match=f'http://127.0.0.1:9/{archive}.*{home/place/archive}|{re.escape(archive)} as {home/place/archive}'): globals()[name]()


# -- reading and keeping ----------------------------------------------------------------------------------------------

@pytest.mark.parametrize('what', ['text', 'cut', 'empty', 'size'])
def test_a_file_that_is_no_image(tmp_path, what):
    path = mini_cifar10(tmp_path/'cifar10')
    bad = path/'train'/'cat'/'1_cat.png'
    if what == 'text': bad.write_text('no image')
    elif what == 'cut': bad.write_bytes(bad.read_bytes()[:1000])
    elif what == 'empty': bad.write_bytes(b'')
    else: save(bad, (33, 32))
    with pytest.raises(ValueError, match=re.escape(str(bad)) + (' has 33x32 pixels' if what == 'size' else ' cannot be read as an image')): cifar10_dls(path=path)
    assert not list(path.glob('*.npz'))


def test_a_photo_that_is_no_image_is_named(woof):
    path = woof.parent/'damaged'
    shutil.copytree(woof, path)
    bad = first(get_image_files(path/'val'))
    bad.write_bytes(bad.read_bytes()[:700])
    dls = imagewoof_dls(path=path, num_workers=0, size=32)
    with pytest.raises(ValueError, match=re.escape(f'The file {bad} cannot be read as an image')): list(dls.valid)


def test_cache(tmp_path, monkeypatch):
    "Decoded once; made anew when a file changes, comes or goes, or the kept file is damaged; not written when told not to"
    path = mini_cifar10(tmp_path/'cifar10')
    read, real = [], archive_files.read_pixels
    monkeypatch.setattr(archive_files, 'read_pixels', lambda *a, **k: read.append(a) or real(*a, **k))
    def images(**kw): read.clear(); dls = cifar10_dls(path=path, **kw); return dls.train_ds.x, len(read)
    x, n = images(cache=False)
    assert n == 30 and not list(path.glob('*.npz'))
    for want in (30, 0): y, n = images(); assert n == want and torch.equal(x, y)
    kept = path/'cifar-10-train.npz'
    assert sorted(o.name for o in path.iterdir()) == ['cifar-10-test.npz', 'cifar-10-train.npz', 'labels.txt', 'test', 'train']
    save(path/'train'/'dog'/'1_dog.png', (32, 32), seed=99)
    y, n = images(); assert n == 20 and not torch.equal(x, y)
    save(path/'train'/'dog'/'2_dog.png', (32, 32)); assert images()[1] == 21
    (path/'train'/'dog'/'2_dog.png').unlink(); assert images()[1] == 20
    for data in (b'', kept.read_bytes()[:5000], b'x'*100, kept.read_bytes().replace(b'\x80', b'\x81')):
        kept.write_bytes(data)
        z, n = images(); assert n == 20 and torch.equal(z, y)
    other = tmp_path/'other'; other.mkdir()
    assert images(cache=other)[1] == 30 and len(list(other.iterdir())) == 2 and images(cache=str(other))[1] == 0
    with pytest.warns(UserWarning, match='Could not write .*nowhere'): assert images(cache=tmp_path/'nowhere')[1] == 30


def test_a_full_disk(tmp_path, monkeypatch):
    "Nothing half-written stays, and the images are there all the same"
    path = mini_cifar10(tmp_path/'cifar10')
    import resource
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    import signal
    old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))  # every longer file fails as on a full disk
        with pytest.warns(UserWarning, match='Could not write .*decoded again next time'): dls = cifar10_dls(path=path)
    finally: resource.setrlimit(resource.RLIMIT_FSIZE, limits); signal.signal(signal.SIGXFSZ, old)
    assert len(dls.train_ds) == 20 and sorted(o.name for o in path.iterdir()) == ['labels.txt', 'test', 'train']


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
    tiny = mini_tiny(tmp_path/'tiny')
    notes = tiny/'val'/'val_annotations.txt'
    notes.write_text(notes.read_text().replace('n01443537', 'n00000000'))
    with pytest.raises(ValueError, match='gives val_199.JPEG the unknown class n00000000'): tiny_imagenet_dls(path=tiny)
    for f in (tiny/'train'/'n01443540'/'images').iterdir(): f.unlink()
    with pytest.raises(ValueError, match='n01443540/images of the class .thing 3. holds no images'): tiny_imagenet_dls(path=tiny)
    dogs = mini_dogs(tmp_path/'dogs')
    (dogs/'test_list.mat').write_bytes(b'no matlab')
    with pytest.raises(ValueError, match=re.escape(f"The file {dogs/'test_list.mat'} is no list of Stanford Dogs")): stanford_dogs_dls(path=dogs)


# -- ImageNet ---------------------------------------------------------------------------------------------------------

@pytest.fixture(scope='module')
def inet(tmp_path_factory): return mini_imagenet(tmp_path_factory.mktemp('inet'))


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


# -- one's own photographs --------------------------------------------------------------------------------------------

@pytest.fixture()
def photos(tmp_path):
    for i, c in enumerate(('apple', 'pear', 'plum')):
        for j in range(10): save(tmp_path/'photos'/c/f'{j}.jpg', (60 + j, 50), seed=i)
    return tmp_path/'photos'


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
            for i in range(k): save(photos.parent/'split'/s/c/f'{i}.png', seed=i)
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
    with pytest.raises(ValueError, match="No photo of the class 'plum' can be read: .*plum.*jpg"): own(photos)


def test_folder_dls_errors(photos, tmp_path):
    with pytest.raises(FileNotFoundError, match='There is no folder .*nowhere'): own(tmp_path/'nowhere')
    with pytest.raises(NotADirectoryError, match='0.jpg is a file, not a folder'): own(photos/'apple'/'0.jpg')
    (tmp_path/'void').mkdir()
    with pytest.raises(FileNotFoundError, match='void has no class folders'): own(tmp_path/'void')
    with pytest.raises(ValueError, match='photo .*apple.0.jpg lies in no class folder'): own(photos/'apple')
    for name in ('notes.txt', 'film.mp4', 'none'):
        (photos/'pear'/name).write_text('x')
        with pytest.raises(ValueError, match=f'The file .*pear.{name} is no image'): own(photos)
        (photos/'pear'/name).unlink()
    (photos/'pear'/'more').mkdir()
    with pytest.raises(ValueError, match='There is a folder .*pear.more within the class folder'): own(photos)
    (photos/'pear'/'more').rmdir(); (photos/'fig').mkdir()
    with pytest.raises(ValueError, match='The class folder .*fig is empty'): own(photos)
    save(photos/'fig'/'only.jpg')
    with pytest.raises(ValueError, match="The class 'fig' needs at least two photos.*only.jpg"): own(photos)
    for c in ('fig', 'pear', 'plum'): shutil.rmtree(photos/c)
    with pytest.raises(ValueError, match="has one class only, 'apple'"): own(photos)
    for i in range(2): save(photos/'fig'/f'{i}.jpg')
    with pytest.raises(ValueError, match='valid_pct must lie between 0 and 1, but is 20'): own(photos, valid_pct=20)


# -- Imagewoof --------------------------------------------------------------------------------------------------------

def miniature(path, n=(3, 2), size=(200, 160)):
    "Generated JPEGs in the layout of the true archive"
    rng = np.random.RandomState(0)
    for s, k in zip(('train', 'val'), n):
        for c, folder in enumerate(FOLDERS):
            (path/s/folder).mkdir(parents=True)
            for i in range(k):
                colour = rng.randint(60, 200, 3)
                im = np.clip(colour + rng.randint(-20, 20, (size[1], size[0], 3)), 0, 255).astype(np.uint8)
                Image.fromarray(im).save(path/s/folder/f'ILSVRC2012_val_{c:04}{i:04}.JPEG', quality=90)
    return path


@pytest.fixture(scope='module')
def woof(tmp_path_factory): return miniature(tmp_path_factory.mktemp('data')/'imagewoof2-160')


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
    crop = first(f for f in imagewoof_dls(path=woof, min_scale=.5, num_workers=0).after_item.fs if isinstance(f, RandomOrCentreCrop))
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
    crop = first(f for f in pipe.fs if isinstance(f, RandomOrCentreCrop))
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
    crop = RandomOrCentreCrop(size)
    ours = np.asarray(crop(im, split_idx=1)).astype(float)
    assert ours.shape == (h, w, 3)
    cw, ch = crop.cp_size
    assert abs(cw/ch - w/h) < .03 and abs(crop.tl[0]*2 + cw - wh[0]) <= 1 and abs(crop.tl[1]*2 + ch - wh[1]) <= 1
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


def test_without_a_network(tmp_path):
    "An installed set is found without a download; a missing one says what to put where"
    home = miniature(tmp_path/'data'/'imagewoof2-160', n=(1, 1), size=(20, 16))
    code = f"""
from focusnet_fastai.all import *
import pathlib
print(len(imagewoof_dls(num_workers=0, strict=False).valid_ds), flush=True)
pathlib.Path({str(home)!r}).rename({str(tmp_path/'elsewhere')!r})
imagewoof_dls(num_workers=0)"""
    out = subprocess.run([sys.executable, '-W', 'ignore', '-c', code], capture_output=True, text=True, env=offline(tmp_path))
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



# -- the installed ones -----------------------------------------------------------------------------------------------

@installed('mnist_png')
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


def test_names_do_not_collide_with_fastai():
    for room in (archive_files, small, photo_sets, folder): assert not set(room.__all__) & set(dir(fv))
