"Shared by all tests: one thread, quiet fastai, the digits."
import os, warnings
os.environ.setdefault('OMP_NUM_THREADS', '1')
os.environ.setdefault('MPLBACKEND', 'agg')
warnings.filterwarnings('ignore', message='.*torch.jit.script.*')

import pytest, torch
from hypothesis import settings
torch.set_num_threads(1)
settings.register_profile('focusnet', deadline=None) # no test may depend on the machine's speed
settings.load_profile('focusnet')

from focusnet_fastai.data.digits import digits_dls
from helpers.learners import make_learner


@pytest.fixture(scope='session')
def dls(): return digits_dls(n_train=256, bs=64)


@pytest.fixture(scope='session')
def base(dls):
    "A trained baseline; no test may change it (checked at the end)"
    learn = make_learner(dls)
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(4, 3e-3)
    before = {k: v.clone() for k, v in learn.model.state_dict().items()}
    yield learn
    assert all(torch.equal(v, before[k]) for k, v in learn.model.state_dict().items()), 'a test changed the shared baseline'


def pytest_collection_modifyitems(items):
    "Many tests take any network for a baseline; those that want to be warned of an untrained one ask with `pytest.warns`"
    for item in items: item.add_marker(pytest.mark.filterwarnings('ignore:The baseline is right on'))
