"What changed: the comparison of two networks, and the verdict in words."
import copy, math
import pandas as pd, pytest, torch, torch.nn.functional as F
from torch import nn
from scipy.stats import binomtest
from fastai.vision.all import CrossEntropyLossFlat, DataLoaders, Learner, TensorMultiCategory, accuracy

from focusnet_fastai.compare import Comparison, accuracy_sentence, heading, mcnemar, probability_sentence, split_sentence
from focusnet_fastai.probabilities import expected_calibration_error
from focusnet_fastai.calibrate import calibrate # noqa: F401, `Learner.calibrate`
from focusnet_fastai.diagnose import diagnose # noqa: F401, `Learner.diagnose`
from focusnet_fastai.focusnet import FocusNetCallback
from focusnet_fastai.label_sets import label_sets # noqa: F401, `Learner.label_sets`
from focusnet_fastai.models import lenet5
from focusnet_fastai.reference import Baseline
from helpers.learners import make_learner, quiet


def test_compare_against_counts_by_hand(dls, base):
    learn = make_learner(dls, seed=5)
    with quiet(learn): learn.fit_one_cycle(3, 3e-3, cbs=FocusNetCallback(base))
    c = learn.compare(base)
    (p, y), (pb, _) = learn.get_preds(), base.get_preds()
    right, base_right = p.argmax(1) == y, pb.argmax(1) == y
    assert c.fixed == [i for i in range(len(y)) if right[i] and not base_right[i]]
    assert c.broken == [i for i in range(len(y)) if base_right[i] and not right[i]]
    assert c.p == pytest.approx(binomtest(len(c.fixed), len(c.fixed)+len(c.broken)).pvalue)
    assert c.df.loc['focusnet', 'accuracy'] == pytest.approx(accuracy(p, y).item())
    assert c.df.loc['baseline', 'nll'] == pytest.approx(F.nll_loss(pb.log(), y).item(), abs=1e-4)
    pairs = c.most_confused(100)
    assert pairs.baseline.sum() == (~base_right).sum() and pairs.focusnet.sum() == (~right).sum()
    top = pairs.iloc[0]
    t, q = int(top.true), int(top.predicted)
    assert top.baseline == ((y == t) & (pb.argmax(1) == q)).sum()
    assert learn.validate()[1] == pytest.approx(c.df.loc['focusnet', 'accuracy'], abs=1e-6)


def test_compare_restores_modes_and_takes_other_images(dls, base):
    learn = make_learner(dls)
    learn.model.train()
    c = learn.compare(base.model, dls.test_dl([dls.valid_ds[i] for i in range(20)], with_labels=True))
    assert learn.model.training and c.y.tolist() == [int(dls.valid_ds[i][1]) for i in range(20)]


def test_compare_of_randomly_transformed_batches(dls, base):
    "Both networks see the same pixels"
    noisy = [[x + .3*torch.randn_like(x), y] for x, y in dls.valid]
    twin = make_learner(dls)
    twin.model.load_state_dict(base.model.state_dict())
    c = twin.compare(base, noisy)
    assert torch.equal(c.z, c.zb) and not c.fixed and not c.broken and c.p == 1


def test_compare_shows_itself(dls, base):
    c = make_learner(dls).compare(base)
    text, html = repr(c), c._repr_html_()
    for word in ('baseline', 'focusnet', 'accuracy', 'ece', 'fixed', 'broken', 'McNemar', 'Most confused'): assert word in text and word in html
    assert '<table' in html and '<' not in text
    assert isinstance(c.df, pd.DataFrame) and list(c.df.columns) == ['accuracy', 'nll', 'ece', 'temperature', 'nll_calibrated', 'ece_calibrated']


def test_compare_of_perfect_networks():
    z = 10*torch.eye(3)
    c = Comparison(z, z, torch.arange(3), vocab=list('abc'))
    assert c.p == 1 and len(c.most_confused()) == 0 and 'Most confused' not in repr(c)
    assert c._repr_html_()


def test_compare_refuses(dls, base):
    learn = make_learner(dls)
    with pytest.raises(ValueError, match='own baseline'): learn.compare(learn)
    with pytest.raises(ValueError, match='no labels'): learn.compare(base, [(x,) for x, _ in dls.valid])
    with pytest.raises(ValueError, match='no images'): learn.compare(base, [])


def test_compare_matches_classes_by_name(dls, base):
    order = [3, 1, 4, 0, 5, 9, 2, 6, 8, 7]
    perm = copy.deepcopy(base.model)
    last = [m for m in perm.modules() if isinstance(m, nn.Linear)][-1]
    last.weight.data, last.bias.data = last.weight.data[order], last.bias.data[order]
    c = make_learner(dls).compare(Baseline(perm, vocab=[str(o) for o in order]))
    assert torch.allclose(c.zb, make_learner(dls).compare(base).zb, atol=1e-5)


def test_calibration_error_by_hand():
    probs = torch.tensor([[.9, .1], [.9, .1], [.6, .4], [.6, .4]])
    # bin of .9: confidence .9, accuracy .5; bin of .6: confidence .6, accuracy 1
    assert expected_calibration_error(probs, torch.tensor([0, 1, 0, 0])) == pytest.approx(.5*.4 + .5*.4)
    assert expected_calibration_error(torch.tensor([[1., 0.]]), torch.tensor([0])) == 0


@pytest.mark.parametrize('fixed,broken,p', [(0, 0, 1.), (5, 5, 1.), (8, 0, 2/2**8), (9, 1, 22/2**10)])
def test_mcnemar(fixed, broken, p): assert mcnemar(fixed, broken) == pytest.approx(p)



# --- networks that have diverged ---------------------------------------------------------------------------------------------

def test_a_diverged_network_is_reported_as_it_is(dls, base):
    learn = make_learner(dls)
    nn.init.constant_(learn.model[-1].weight, math.nan)
    c = learn.compare(base)
    assert c.df.loc['focusnet', 'accuracy'] == 0 and c.df.loc['focusnet', ['nll', 'ece']].isna().all()
    assert c.df.loc['baseline', 'accuracy'] == pytest.approx(base.validate()[1]) and c.df.loc['baseline'].notna().all()
    assert not c.fixed and len(c.broken) == int((c.base_pred == c.y).sum())
    assert f'focusnet gives NaN for {len(c.y)}' in repr(c) and 'no answer' in list(c.most_confused(100).predicted) and c._repr_html_()
    assert heading(c) == 'Focusnet is less accurate than the baseline' and 'NaN' in probability_sentence(c)
    assert 'focusnet 0 (0.0%)' in accuracy_sentence(c) and split_sentence(c)


@pytest.mark.parametrize('bad', [math.nan, math.inf, -math.inf])
def test_single_logits_that_are_no_numbers(bad):
    z = torch.tensor([[2., 0.], [0., 2.], [bad, 0.]])
    c = Comparison(z, z.nan_to_num(0, 9, -9), torch.tensor([0, 1, 0]))
    assert c.pred.tolist()[:2] == [0, 1] and c.pred[2] == (-1 if bad != bad else 0 if bad > 0 else 1)
    assert math.isnan(c.df.ece.iloc[1]) == (bad == bad and bad > 0 or bad != bad)
    repr(c), c._repr_html_(), probability_sentence(c), split_sentence(c)


def test_calibration_of_nan_is_nan():
    assert math.isnan(expected_calibration_error(torch.tensor([[math.nan, 1.], [.5, .5]]), torch.tensor([0, 1])))


# --- targets and loaders -------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('make,words', [(lambda y: y[:, None], 'squeeze them'), (lambda y: y.float(), 'whole numbers'), (lambda y: torch.ones(len(y), 1), 'squeeze them'),
                                        (lambda y: TensorMultiCategory(F.one_hot(y, 10).float()), 'Multi-label'), (lambda y: F.one_hot(y, 10) + F.one_hot((y+1)%10, 10), 'Multi-label'),
                                        (lambda y: torch.randn(len(y), 3), 'Multi-label')])
def test_other_targets_are_refused_with_their_reason(dls, base, make, words):
    with pytest.raises(ValueError, match=f'one class an image.*{words}'): make_learner(dls).compare(base, [(x, make(y.as_subclass(torch.Tensor))) for x, y in dls.valid])


def test_two_targets_are_refused(dls, base):
    learn = make_learner(dls)
    batches = [(x, y, y) for x, y in dls.valid]
    with pytest.raises(ValueError, match='one target an image, but there are 2'): learn.compare(base, batches)


def test_probabilities_as_targets(dls, base):
    soft = [(x, F.one_hot(y.as_subclass(torch.Tensor), 10)*.9 + .01) for x, y in dls.valid]
    learn = make_learner(dls)
    assert torch.equal(learn.compare(base, soft).y, learn.compare(base).y.as_subclass(torch.Tensor))


@pytest.mark.parametrize('kw', [dict(shuffle=False), dict(shuffle=True, drop_last=True), dict(sampler='weighted'), dict(num_workers=1, shuffle=True)])
def test_loaders_of_pytorch(dls, base, kw):
    "Trained and compared; all images in their order, however the loader draws them"
    xy = [(torch.as_tensor(x).as_subclass(torch.Tensor), int(y)) for x, y in [dls.valid_ds[i] for i in range(50)]]
    if 'sampler' in kw: kw = dict(sampler=torch.utils.data.WeightedRandomSampler(torch.ones(50), 30))
    load = lambda **k: torch.utils.data.DataLoader(xy, batch_size=16, **k)
    plain = DataLoaders(load(shuffle=True), load(**kw))
    learn = Learner(plain, lenet5(10), loss_func=CrossEntropyLossFlat(), metrics=accuracy)
    with quiet(learn): learn.fit(1, 1e-3, cbs=FocusNetCallback(base.model))
    c = learn.compare(base.model)
    assert c.y.tolist() == [y for _, y in xy]
    with torch.no_grad(): assert torch.allclose(c.zb, base.model.eval()(torch.stack([x for x, _ in xy])), atol=1e-4)


def test_two_inputs_of_a_pytorch_loader(dls, base):
    class Two(nn.Module):
        def __init__(self): super().__init__(); self.net = lenet5(10)
        def forward(self, a, b): return self.net(a) + b.mean((1, 2, 3))[:, None]
    xs = [torch.as_tensor(dls.valid_ds[i][0]).as_subclass(torch.Tensor) for i in range(20)]
    load = torch.utils.data.DataLoader([(x, 2*x, i%10) for i, x in enumerate(xs)], batch_size=8)
    learn = Learner(DataLoaders(load, load), Two(), loss_func=CrossEntropyLossFlat())
    assert learn.compare(Two()).y.tolist() == [i%10 for i in range(20)]


# --- shown where it stands ------------------------------------------------------------------------------------------------------

CELLS = dict(middle=('learn.compare(base)\n1+1', 1), last=('learn.compare(base)', 1), named=('c = learn.compare(base)', 0), attribute=('learn.compare(base).p', 0),
             named_and_last=('c = learn.compare(base)\nc', 1), twice=('learn.compare(base)\nlearn.compare(base)', 2), loop=('for _ in range(2): learn.compare(base)', 2),
             function=('def f(): return learn.compare(base).p\nf()', 0), argument=('len(repr(learn.compare(base)))', 0), made=('Comparison(*learn.paired_logits(base))\n1', 0))


@pytest.mark.slow
def test_shown_once_wherever_it_stands(kernel):
    "In a notebook kernel"
    kernel.shown('dls = digits_dls(n_train=64)\nbase, learn = [Learner(dls, lenet5(10)) for _ in range(2)]')
    for name, (code, n) in CELLS.items():
        tables = [o for o in kernel.shown(code) if 'McNemar' in str(o.get('data', {}).get('text/html', ''))]
        assert len(tables) == n, (name, tables)


def test_nothing_is_shown_outside_of_a_notebook(dls, base, capsys):
    make_learner(dls).compare(base)
    assert capsys.readouterr().out == ''


ASKED = {'compare': lambda l: l.compare(lenet5(10)), 'diagnose': lambda l: l.diagnose(), 'label_sets': lambda l: l.label_sets(), 'calibrate': lambda l: l.calibrate()}

@pytest.mark.parametrize('what', ASKED)
def test_without_images_to_judge_by(dls, what):
    "No validation set, and an empty one as exported learners have it: a sentence that says what to pass"
    learn = make_learner(dls)
    for own, words in ((DataLoaders(dls.train, device='cpu'), 'has no validation set: pass `dl`'), (dls.new_empty(), 'the loader is empty.*pass `dl`')):
        learn.dls = own
        with pytest.raises(ValueError, match=words): ASKED[what](learn)
