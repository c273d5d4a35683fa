"Shared by all tests: one thread, quiet fastai, the digits."
import gc, os, signal, warnings
os.environ.setdefault('OMP_NUM_THREADS', '1')
os.environ.setdefault('MPLBACKEND', 'agg')
warnings.filterwarnings('ignore', message='.*torch.jit.script.*')

import pytest, torch
from hypothesis import settings
torch.set_num_threads(1)
settings.register_profile('focusnet', deadline=None) # no test may depend on the machine's speed
settings.load_profile('focusnet')

from fastai.torch_core import default_device
from helpers.kernels import Kernel
from helpers.learners import make_learner, small

if torch.cuda.is_available(): default_device(False) # tests compare with the processor's numbers; those for a GPU take it back (`card`)

gc.freeze() # what PyTorch and fastai have loaded is no garbage, and need not be looked through again and again

# A shell without job control starts what it puts into the background with Ctrl-C ignored, and so would be all processes of the tests
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN: signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope='session')
def dls(): return small(n_train=256, bs=64, n_valid=128)


@pytest.fixture(scope='session')
def base(dls):
    "A trained baseline; no test may change it (checked at the end)"
    learn = make_learner(dls)
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(4, 3e-3)
    before = {k: v.clone() for k, v in learn.model.state_dict().items()}
    yield learn
    assert all(torch.equal(v, before[k]) for k, v in learn.model.state_dict().items()), 'a test changed the shared baseline'


@pytest.fixture(scope='session')
def kernel():
    "A kernel in which fastai and this package are loaded; cells of several tests run in it"
    pytest.importorskip('ipykernel')
    kernel = Kernel()
    kernel.shown("import warnings; warnings.filterwarnings('ignore')\nfrom fastai.vision.all import *\nfrom focusnet_fastai.all import *")
    yield kernel
    kernel.end()


@pytest.fixture(scope='module')
def card():
    "For a whole module: fastai uses the GPU again, if there is one"
    default_device(None)
    yield
    default_device(False if torch.cuda.is_available() else None)


def pytest_collection_modifyitems(items):
    "Many tests take any network for a baseline; those that want to be warned of an untrained one ask with `pytest.warns`"
    for item in items: item.add_marker(pytest.mark.filterwarnings('ignore:The baseline is right on'))
