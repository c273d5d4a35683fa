"Files and archives: found, checked, unpacked, decoded and kept"
import functools, io, random, re, tarfile, zipfile
from pathlib import Path
import numpy as np, pytest, torch
from PIL import Image
from fastai.vision.all import first, get_image_files
from focusnet_fastai.data import archives as archive_files, image_files, photos, small
from focusnet_fastai.data.image_files import cached_images
from focusnet_fastai.data.archives import check_archive, known_digests, unpacked
from focusnet_fastai.data.photos import imagewoof_dls
from focusnet_fastai.data.small import cifar10_dls
from helpers.archives import SETS, Quiet, makers, md5, pack, point
from helpers.miniatures import mini_cifar10, save

pytestmark = pytest.mark.filterwarnings('ignore:.*Table 1 of the paper')



@pytest.mark.parametrize('name', SETS)
def test_truncated_and_tampered_archives(served, server, name):
    "The error names the archive; nothing half-unpacked stays behind; a good copy then works"
    archive, place, _, kwargs, _ = SETS[name]
    good, file = (server[1]/archive).read_bytes(), served/place/archive
    make = functools.partial(makers[name], strict=False, **kwargs)
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
        place_of = {'cifar100_dls': 'cifar100/cifar-100-python', 'stanford_dogs_dls': 'stanford_dogs/data/images'}.get(name, archive.split('.')[0])
        assert not (served/"data"/place_of).exists()
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
    with pytest.raises(OSError, match=f'http://127.0.0.1:9/{archive}.*{home/place/archive}|{re.escape(archive)} as {home/place/archive}'): makers[name]()


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


def test_cache(tmp_path, monkeypatch):
    "Decoded once; made anew when a file changes, comes or goes, or the kept file is damaged; not written when told not to"
    path = mini_cifar10(tmp_path/'cifar10')
    read, real = [], image_files.read_pixels
    monkeypatch.setattr(image_files, 'read_pixels', lambda *a, **k: read.append(a) or real(*a, **k))
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


# -- nothing outside the folder ---------------------------------------------------------------------------------------

def member(name, data=b'', **kwargs):
    o = tarfile.TarInfo(name)
    o.size = len(data)
    for k, v in kwargs.items(): setattr(o, k, v)
    return o, io.BytesIO(data)


EVIL = {'parent': [member('../evil.txt', b'x')], 'deep': [member('a/../../evil.txt', b'x')], 'absolute': [member('/tmp/evil.txt', b'x')],
        'link': [member('link', type=tarfile.SYMTYPE, linkname='..'), member('link/evil.txt', b'x')],
        'hard link': [member('a.txt', type=tarfile.LNKTYPE, linkname='../../evil.txt')], 'device': [member('null', type=tarfile.CHRTYPE)],
        'windows': [member('..\\evil.txt', b'x')], 'drive': [member('C:/evil.txt', b'x')]}


@pytest.mark.parametrize('name', EVIL)
@pytest.mark.parametrize('kind', ['tar', 'tgz', 'zip'])
def test_nothing_is_written_outside(tmp_path, name, kind):
    "Refused with the member's name, and nothing is there afterwards, inside or outside"
    if kind == 'zip' and name == 'link': pytest.skip('zipfile writes a link as a file, so nothing can lie in it')
    base = tmp_path/'a'/'b'
    archive = base/'archive'/f'set.{kind}'
    archive.parent.mkdir(parents=True)
    if kind == 'zip':
        with zipfile.ZipFile(archive, 'w') as z:
            for o, data in EVIL[name]: z.writestr(o.name, data.read())
    else:
        with tarfile.open(archive, 'w:gz' if kind == 'tgz' else 'w') as t:
            for o, data in EVIL[name]: t.addfile(o, data)
    for _, data in EVIL[name]: data.seek(0)
    if kind == 'zip' and name in ('hard link', 'device'):
        unpacked(f'https://example.org/set.{kind}', base)  # zipfile knows no links: these are small files
    else:
        with pytest.raises(OSError, match=f'set.{kind} is damaged .*(would be written outside|neither a file nor a folder)'): unpacked(f'https://example.org/set.{kind}', base)
        assert not (base/'data'/'set').exists()
    assert not [o for o in tmp_path.rglob('evil.txt') if 'data/set' not in str(o)] and not Path('/tmp/evil.txt').exists()


@pytest.mark.parametrize('kind', ['tgz', 'zip'])
def test_a_bomb(tmp_path, kind):
    "Far more than its size: refused before it is unpacked"
    f = tmp_path/f'a.{kind}'
    data = bytes(150*2**20)
    if kind == 'zip':
        with zipfile.ZipFile(f, 'w', zipfile.ZIP_DEFLATED) as z: z.writestr('a.png', data)
    else:
        with tarfile.open(f, 'w:gz') as t: t.addfile(*member('a.png', data))
    assert f.stat().st_size < 10**6
    with pytest.raises(OSError, match='far more room'): check_archive(f)


def test_digests_belong_to_the_addresses_in_use():
    assert small.tiny_imagenet_url in known_digests and {photos.stanford_dogs_url + o for o in ('images.tar', 'lists.tar')} <= set(known_digests)
    assert all(o.startswith('https://') for o in known_digests)


def test_an_archive_with_another_digest(tmp_path, monkeypatch):
    "The digest of the whole archive is compared before anything is unpacked"
    for i in range(3): save(tmp_path/'in'/f'{i}.png', seed=i)
    (tmp_path/'archive').mkdir()
    pack(tmp_path/'archive'/'set.tgz', tmp_path/'in', 'in')
    url = 'https://example.org/set.tgz'
    monkeypatch.setitem(known_digests, url, '0'*32)
    with pytest.raises(OSError, match='set.tgz is damaged .its MD5 digest is .* instead of 0000'): unpacked(url, tmp_path)
    monkeypatch.setitem(known_digests, url, md5(tmp_path/'archive'/'set.tgz'))
    assert len(list(unpacked(url, tmp_path).iterdir())) == 3


def test_kept_images_are_checked(tmp_path):
    "200 mutations of the file: flipped bits, cuts, zeros, exchanged pieces. The same images, whatever happens to it"
    rng = random.Random(0)
    for i in range(6): save(tmp_path/f'{i}.png', (12, 12), seed=i)
    files, kept = sorted(tmp_path.glob('*.png')), tmp_path/'kept.npz'
    want = cached_images(kept, files)
    good = kept.read_bytes()
    for k in range(200):
        data, n = bytearray(good), rng.randrange(len(good))
        if k % 4 == 0: data[n] ^= 1 << rng.randrange(8)
        elif k % 4 == 1: data = data[:n]
        elif k % 4 == 2: data[n:n+rng.randrange(1, 60)] = bytes(rng.randrange(1, 60))
        else: data[n:n+16], data[:16] = data[:16], data[n:n+16]
        kept.write_bytes(data)
        assert torch.equal(cached_images(kept, files), want), k
