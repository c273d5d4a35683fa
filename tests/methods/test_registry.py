"Names, settings, and how a method is put to a learner."
import inspect
import pytest
from fastai.vision.all import Learner, noop

from helpers.learners import make_learner, small
from helpers.methods import tiny_resnet
from focusnet_fastai.methods.distil import KD, TfKD
from focusnet_fastai.methods.registry import apply_method, deployed_network, find_method, method_settings, methods, needs_baseline
from focusnet_fastai.methods.views import CSKD
from focusnet_fastai.methods.wrap import WrappedLearner, WrapTerms
from focusnet_fastai.terms import LossTerms

every_name = pytest.mark.parametrize('name', methods)


@pytest.fixture(scope='module')
def data(): return small(n_train=64, bs=16)


def test_names():
    assert find_method('cs_kd') is CSKD
    with pytest.raises(ValueError, match="Unknown method 'CSKD': choose from baseline, focusnet, .*one, pskd"): find_method('CSKD')


@every_name
def test_settings_are_the_arguments(name):
    "Each has a default, and none of them is the learner or the baseline"
    settings = method_settings(find_method(name))
    assert all(p.default is not inspect.Parameter.empty for p in settings.values()) and not {'learn', 'base', 'baseline', 'self'} & set(settings)


def test_one_place_says_who_needs_a_baseline():
    "The attribute of the class, not the names of its arguments"
    class Other(LossTerms):
        needs_baseline = True
        def __init__(self, teacher): super().__init__(teacher)
    assert needs_baseline(Other) and needs_baseline(TfKD) and not needs_baseline(CSKD)
    assert {m for m in methods if needs_baseline(methods[m])} == {'focusnet', 'focusnet_released', 'focusnet_few', 'kd', 'de_reverse_kd', 'tf_kd'}


@every_name
def test_apply(data, base, name):
    "A learner to train and a callback, or a wrapped learner; what is deployed fits"
    f = find_method(name)
    learn = make_learner(data, model=tiny_resnet())
    got, cb = apply_method(f, learn, base if needs_baseline(f) else None)
    wraps = isinstance(f, type) and issubclass(f, WrapTerms)
    assert isinstance(got, WrappedLearner) == wraps and (got is learn) != wraps and isinstance(cb, LossTerms) == (not wraps and name != 'baseline')
    net = deployed_network(f, make_learner(data, model=tiny_resnet()))
    kept = got.unwrap().model if wraps else got.model
    assert {k: v.shape for k, v in net.state_dict().items()} == {k: v.shape for k, v in kept.state_dict().items()}
    if needs_baseline(f):
        with pytest.raises(ValueError, match='needs a trained baseline'): apply_method(f, learn)


def test_settings_arrive(data, base):
    _, cb = apply_method(methods['de_reverse_kd'], make_learner(data), base, T=2.)
    assert (type(cb), cb.alpha, cb.T) == (KD, 1., 2.)
    learn2, cb = apply_method(methods['cs_kd'], make_learner(data), lam=3.)
    assert learn2.method.lam == 3. and cb is None
    with pytest.raises(TypeError, match='lamda'): apply_method(methods['cs_kd'], make_learner(data), lamda=3.)


def test_a_function_is_a_method(data):
    own = lambda learn, lr=1: (learn, noop)
    learn = make_learner(data)
    assert apply_method(own, learn, lr=2) == (learn, noop) and list(method_settings(own)) == ['lr'] and not needs_baseline(own)
    assert deployed_network(own, learn) is learn.model
