"What an exported learner needs where it is loaded: it is listed, and named where it is missing."
import json, sys
import pytest, torch
from torch import nn
from fastai.vision.all import Learner, load_learner
from focusnet_fastai.app.photo_files import needed_packages, save_learner
from focusnet_fastai.app.photo_network import digit_photos, photo_learner
from focusnet_fastai.data.folder import folder_dls
from helpers import fresh

NET = '''
from torch import nn
class Net(nn.Module):
    def __init__(self): super().__init__(); self.pool, self.last = nn.AdaptiveAvgPool2d(2), nn.Linear(12, 2)
    def forward(self, x): return self.last(self.pool(x).flatten(1))
'''
READ = '''
from focusnet_fastai.app.photo_files import read_exported
try: print(*read_exported('out/focusnet.pkl').dls.vocab)
except ValueError as e: print(e)
'''


@pytest.fixture(scope='module')
def photos(tmp_path_factory): return digit_photos(tmp_path_factory.mktemp('files')/'photos', (3, 8), n=6)


@pytest.fixture
def out(tmp_path):
    (tmp_path/'out').mkdir()
    return tmp_path/'out'


def needs(out): return json.loads((out/'focusnet.json').read_text())['needs']


def test_a_network_of_torchvision_needs_nothing(photos, out):
    learn = photo_learner(folder_dls(photos, size=32, num_workers=0), 'squeezenet1_1', pretrained=False)
    assert save_learner(learn, out, 'focusnet', {}) == needs(out) == []


@pytest.mark.slow
def test_a_network_of_timm_needs_timm(photos, out):
    pytest.importorskip('timm')
    learn = photo_learner(folder_dls(photos, size=32, num_workers=0), 'resnet10t', pretrained=False)
    assert save_learner(learn, out, 'focusnet', {}) == needs(out) == ['timm']
    assert fresh.python(READ, cwd=out.parent).stdout.split() == ['3', '8']
    said = fresh.python(READ, cwd=out.parent, without='timm').stdout
    assert "focusnet.pkl cannot be loaded as an exported learner: No module named 'timm" in said


@pytest.mark.slow
def test_a_class_of_a_module_of_ones_own(photos, out, tmp_path, monkeypatch):
    "Needs the module, by its name"
    (tmp_path/'mynets.py').write_text(NET)
    monkeypatch.syspath_prepend(tmp_path)
    from mynets import Net
    learn = Learner(folder_dls(photos, size=32, num_workers=0), Net())
    assert save_learner(learn, out, 'focusnet', {}) == needs(out) == ['mynets']
    assert fresh.python(READ, cwd=tmp_path).stdout.split() == ['3', '8']
    (tmp_path/'mynets.py').unlink()
    assert "focusnet.pkl cannot be loaded as an exported learner: No module named 'mynets'" in fresh.python(READ, cwd=tmp_path).stdout
    sys.modules.pop('mynets')


@pytest.mark.slow
def test_a_class_of_a_notebook_travels(photos, out):
    "Also a function and a lambda that were defined there"
    code = NET + f'''
from fastai.vision.all import Learner
from focusnet_fastai.app.photo_files import save_learner
from focusnet_fastai.data.folder import folder_dls
from pathlib import Path
def halved(x): return x/2
class Halved(Net):
    change = staticmethod(lambda x: halved(x))
    def forward(self, x): return super().forward(self.change(x))
print(save_learner(Learner(folder_dls({str(photos)!r}, size=32, num_workers=0), Halved()), Path('out'), 'focusnet', dict()))
'''
    made = fresh.python(code, cwd=out.parent)
    assert made.stdout.split() == ['[]'], made.stderr[-2000:]
    learn = load_learner(out/'focusnet.pkl')
    x = torch.rand(1, 3, 32, 32)
    assert torch.allclose(learn.model(x), learn.model.last(learn.model.pool(x/2).flatten(1)))


def test_an_archive_of_weights_names_no_package(tmp_path):
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path/'w.pth')
    assert needed_packages((tmp_path/'w.pth').read_bytes()) == []
