"Trainings on photographs keep them decoded below fastai's folder: here it is an empty one"
import os
import pytest
from fastai.data.external import fastai_cfg


@pytest.fixture(scope='module')
def own_home(tmp_path_factory):
    "An empty fastai folder, for this process and those that it starts"
    with pytest.MonkeyPatch.context() as m:
        m.setenv('FASTAI_HOME', str(tmp_path_factory.mktemp('fastai')))
        fastai_cfg.cache_clear()
        yield
    fastai_cfg.cache_clear()
