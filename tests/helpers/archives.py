"A server of miniature archives on the loopback interface"
import hashlib, http.server, tarfile, zipfile
from pathlib import Path
from torchvision.datasets import CIFAR100
from fastai.vision.all import URLs
from focusnet_fastai.data import photos, small

makers = {o: getattr(small, o) for o in ('mnist_dls', 'cifar10_dls', 'cifar100_dls', 'tiny_imagenet_dls')}
makers |= {o: getattr(photos, o) for o in ('imagewoof_dls', 'cub200_dls', 'stanford_dogs_dls')}
SETS = { # function: archive, place of the archive below fastai's folder, miniature's classes and sizes, arguments, shape
    'mnist_dls': ('mnist_png.tgz', 'archive', (10, 20, 10), {}, (1, 32, 32)), 'cifar10_dls': ('cifar10.tgz', 'archive', (10, 20, 10), {}, (3, 32, 32)),
    'cifar100_dls': ('cifar-100-python.tar.gz', 'data/cifar100', (100, 200, 100), {}, (3, 32, 32)),
    'tiny_imagenet_dls': ('tiny-imagenet-200.zip', 'archive', (200, 400, 200), {}, (3, 64, 64)),
    'imagewoof_dls': ('imagewoof2-160.tgz', 'archive', (10, 20, 10), dict(size=24, num_workers=0), (3, 24, 24)),
    'cub200_dls': ('CUB_200_2011.tgz', 'archive', (200, 400, 200), dict(size=24, num_workers=0), (3, 24, 24)),
    'stanford_dogs_dls': ('images.tar', 'data/stanford_dogs/archive', (120, 240, 120), dict(size=24, num_workers=0), (3, 24, 24))}


class Quiet(http.server.SimpleHTTPRequestHandler):
    cut = {}  # file name -> how many bytes really come before the connection breaks
    def log_message(self, *args): pass
    def copyfile(self, source, out):
        n = self.cut.get(self.path.split('/')[-1])
        if n is None: super().copyfile(source, out)
        else: out.write(source.read(n)); self.close_connection = True


def md5(f): return hashlib.md5(f.read_bytes()).hexdigest()


def pack(archive, folder, name=None):
    "An archive whose top folder is `name`, or which holds what is in `folder`"
    if archive.suffix == '.zip':
        with zipfile.ZipFile(archive, 'w', zipfile.ZIP_DEFLATED) as z:
            for f in sorted(folder.rglob('*')): z.write(f, Path(name)/f.relative_to(folder))
    else:
        with tarfile.open(archive, 'w' if archive.suffix == '.tar' else 'w:gz') as t:
            for f in [folder] if name else sorted(folder.iterdir()): t.add(f, name or f.name)


def point(monkeypatch, url):
    for name, f in dict(MNIST='mnist_png', CIFAR='cifar10', IMAGEWOOF_160='imagewoof2-160', CUB_200_2011='CUB_200_2011').items(): monkeypatch.setattr(URLs, name, f'{url}{f}.tgz')
    monkeypatch.setattr(small, 'tiny_imagenet_url', f'{url}tiny-imagenet-200.zip')
    monkeypatch.setattr(photos, 'stanford_dogs_url', url)
    monkeypatch.setattr(CIFAR100, 'url', f'{url}cifar-100-python.tar.gz')
