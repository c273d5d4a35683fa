"Sets of classes: the promise on real digits, the quantile by counting, and the file beside the learner."
import json, math
import numpy as np, pytest, torch
import torch.nn.functional as F
from fastai.vision.all import Learner, noop, set_seed
from hypothesis import given, settings, strategies as st

from helpers.learners import quiet
from focusnet_fastai.data.digits import digits_dls
from focusnet_fastai.label_sets import LabelSets, bounded_temperature, conformal_threshold, crossed_sets, set_measures
from focusnet_fastai.record import RunError


@pytest.fixture(scope='module')
def poor():
    "A network that has seen few digits, and its logits for those it has not"
    import random
    from focusnet_fastai.models import lenet5
    set_seed(0)
    dls = digits_dls(n_train=100, bs=16)
    dls.train.rng = random.Random(0)
    learn = Learner(dls, lenet5(10))
    with quiet(learn):
        learn.fit_one_cycle(6, 3e-3)
        return learn, *learn.get_preds(act=noop)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=60), st.floats(.01, .99))
@settings(max_examples=60)
def test_threshold_by_counting(strange, coverage):
    "The smallest value that covers, of n+1 images of which one is as strange as can be, at least the promised part"
    want = min((t for t in [*strange, math.inf] if sum(s <= t for s in strange) + (t == math.inf) >= (len(strange)+1)*coverage - 1e-9), default=math.inf)
    assert conformal_threshold(torch.tensor(strange, dtype=torch.float64), coverage) == want


@pytest.mark.parametrize('coverage', [.8, .9, .95])
def test_promise_is_kept(poor, coverage):
    "Within a point, over 20 random halves of real digits; the sets are not padded"
    _, z, y = poor
    got = []
    for i in range(20):
        a, b = torch.randperm(len(y), generator=torch.Generator().manual_seed(i)).chunk(2)
        got.append(LabelSets.calibrate(z[a], y[a], coverage=coverage).measured(z[b], y[b], empty=True))
    assert abs(np.mean([o['coverage'] for o in got]) - coverage) < .01
    assert np.mean([o['size'] for o in got]) < {.8: 1.5, .9: 2, .95: 3}[coverage]


def test_temperature_is_the_best_of_many(poor):
    _, z, y = poor
    grid = np.exp(np.linspace(math.log(.1), math.log(10), 400))
    best = min(grid, key=lambda t: F.cross_entropy(z.double()/t, y))
    assert abs(bounded_temperature(z, y)/best - 1) < .02
    assert [bounded_temperature(z, o) for o in (z.argmax(1), z.argmin(1))] == [.05, 20] and bounded_temperature(z*0, y) == 20 # none is best


def test_sets_by_hand():
    sets = LabelSets(.6, .9, 1., ['a', 'b', 'c'], 100)
    z = torch.tensor([[.5, .45, .05], [.9, .05, .05], [.35, .33, .32]]).log()
    assert sets.named(z) == [['a', 'b'], ['a'], ['a']] # of the last one no class reaches .4, and the best stays
    assert sets.in_set(z, empty=True).sum(1).tolist() == [2, 1, 0]
    assert sets.measured(z, torch.tensor([1, 1, 0])) == dict(coverage=2/3, size=4/3, single=2/3)


def test_learner_file_and_mistakes(poor, tmp_path):
    learn, z, y = poor
    with quiet(learn): sets = learn.label_sets(coverage=.9)
    assert sets.classes == [str(i) for i in range(10)] and sets.n == len(y)
    assert abs(sets.threshold - LabelSets.calibrate(z, y, coverage=.9).threshold) < 1e-4
    again = LabelSets.load(sets.save(tmp_path/'digits.sets.json'))
    assert again.named(z) == sets.named(z) == sets.predict(learn, learn.dls.valid)
    assert set(json.loads((tmp_path/'digits.sets.json').read_text())) == {'threshold', 'coverage', 'temperature', 'classes', 'n'}
    few = LabelSets.calibrate(z[:5], y[:5], coverage=.9)
    assert few.in_set(z).all() and LabelSets.load(few.save(tmp_path/'few.json')).threshold == math.inf # five images promise nothing
    for wrong, words in ((dict(coverage=1.), 'between 0 and 1'), (dict(y=y[:3]), '3 labels'), (dict(z=z*math.nan), 'no numbers')):
        with pytest.raises(ValueError, match=words): LabelSets.calibrate(**{**dict(z=z, y=y), **wrong})
    (tmp_path/'bad.json').write_text('{}')
    with pytest.raises(ValueError, match='holds no label sets'): LabelSets.load(tmp_path/'bad.json')
    (tmp_path/'bad.json').write_text('{')
    with pytest.raises(RunError, match='is damaged'): LabelSets.load(tmp_path/'bad.json')
    with pytest.raises(ValueError, match='of 3 classes'): LabelSets(.5, .9, 1., 'abc', 9).predict(learn, learn.dls.valid)


def test_halves_make_the_sets_of_each_other(poor):
    "No image has a part in its own set, and the promise is kept"
    _, z, y = poor
    inside = crossed_sets(z, y, .8)
    assert torch.equal(inside[::2], LabelSets.calibrate(z[1::2], y[1::2], coverage=.8).in_set(z[::2]))
    other = y.clone()
    other[::2] = (y[::2]+1) % z.shape[1]  # wrong labels of one half change the sets of the other one only
    again = crossed_sets(z, other, .8)
    assert torch.equal(again[::2], inside[::2]) and not torch.equal(again[1::2], inside[1::2])
    found = set_measures(inside, y)
    assert abs(found['coverage']-.8) < .04 and found['size'] == inside.sum(1).double().mean().item()


def test_a_promise_that_so_few_images_do_not_allow(poor):
    "A warning that says what they allow; the sets are all classes then, and the promise is not rounded up"
    learn, z, y = poor
    with pytest.warns(UserWarning, match=f'{len(y)} images allow a promise of 99.87% at most'): sets = learn.label_sets(coverage=.9999)
    assert sets.in_set(z[:5]).all() and '99.99%' in repr(sets) and '100%' not in repr(sets)
