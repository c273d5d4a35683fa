"Shared by all tests: one thread, quiet fastai, the digits."
import os, random, warnings
os.environ.setdefault('OMP_NUM_THREADS', '1')
os.environ.setdefault('MPLBACKEND', 'agg')
warnings.filterwarnings('ignore', message='.*torch.jit.script.*')

import pytest, torch
torch.set_num_threads(1)

from fastai.vision.all import Learner, accuracy, set_seed
from focusnet_fastai.data.digits import digits_dls
from focusnet_fastai.models import lenet5


@pytest.fixture(scope='session')
def dls(): return digits_dls(n_train=256, bs=64)


def make_learner(dls, seed=0, model=None, **kwargs):
    "A fresh learner whose initialisation and order of images depend on `seed` alone"
    set_seed(seed)
    dls.train.rng = random.Random(seed)
    return Learner(dls, lenet5(dls.c) if model is None else model, metrics=accuracy, **kwargs)


@pytest.fixture(scope='session')
def base(dls):
    "A trained baseline; no test may change it (checked at the end)"
    learn = make_learner(dls)
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(4, 3e-3)
    before = {k: v.clone() for k, v in learn.model.state_dict().items()}
    yield learn
    assert all(torch.equal(v, before[k]) for k, v in learn.model.state_dict().items()), 'a test changed the shared baseline'
