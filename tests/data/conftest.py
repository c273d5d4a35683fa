"Miniatures of the data sets: as folders, as archives on a server, and in an empty fastai folder"
import functools, http.server, tarfile, threading
import pytest
from torchvision.datasets import CIFAR100
from fastai.data.external import fastai_cfg
from helpers.archives import Quiet, md5, pack, point
from helpers.miniatures import (mini_cifar10, mini_cifar100, mini_cub, mini_dogs, mini_imagenet, mini_mnist, mini_tiny, miniature, save)


@pytest.fixture(scope='session')
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


@pytest.fixture(scope='session')
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


@pytest.fixture(scope='session')
def woof(tmp_path_factory): return miniature(tmp_path_factory.mktemp('data')/'imagewoof2-160')


@pytest.fixture(scope='session')
def inet(tmp_path_factory): return mini_imagenet(tmp_path_factory.mktemp('inet'))


@pytest.fixture()
def photos(tmp_path):
    for i, c in enumerate(('apple', 'pear', 'plum')):
        for j in range(10): save(tmp_path/'photos'/c/f'{j}.jpg', (60 + j, 50), seed=i)
    return tmp_path/'photos'
