"What `?` shows of the names that the star import gives."
import inspect
import pytest
from fastai.vision.all import Learner
import focusnet_fastai.all as given
from focusnet_fastai.docs import document_function, meanings
from helpers import fresh

METHODS = ['refocus', 'compare', 'fresh_learner', 'show_focus', 'show_confusion', 'show_fixed', 'paired_logits', 'report']


def commented(f):
    "Parameters with a comment beside them, from the source"
    return meanings(f)


@pytest.mark.parametrize('name', METHODS)
def test_methods_tell_what_their_parameters_mean(name):
    f = getattr(Learner, name)
    doc = inspect.getdoc(f)
    for k, v in commented(f).items(): assert v in doc and (k == 'return' or f'{k}: ' in doc), (name, k)
    assert name not in ('refocus', 'compare') or ('Parameters:' in doc and 'Returns:' in doc)


def test_every_given_name_tells_them():
    names = {k: v for k, v in vars(given).items() if not k.startswith('_') and getattr(v, '__module__', '').startswith('focusnet_fastai')}
    assert len(names) > 40
    for k, v in names.items():
        f = v.__init__ if inspect.isclass(v) else v
        if not inspect.isfunction(f) or not f.__module__.startswith('focusnet_fastai'): continue
        for what in commented(f).values(): assert what in f.__doc__, (k, what)


def test_documenting_twice_changes_nothing():
    before = Learner.refocus.__doc__
    document_function(Learner.refocus)
    assert Learner.refocus.__doc__ == before and before.startswith('Train a fresh network')


@pytest.mark.slow
def test_the_star_import_gives_no_tools():
    code = 'before = set(globals())\nfrom focusnet_fastai.all import *\nprint(*sorted(set(globals()) - before - {"before"}))'
    out = fresh.python(code)
    assert 'refocus' not in out.stdout.split() and not [o for o in out.stdout.split() if o.startswith('_') or o in ('document', 'Learner')], out
    assert 'FocusNetCallback' in out.stdout
