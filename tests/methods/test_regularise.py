"Cross-entropy, label smoothing, focal loss, confidence penalty: values and gradients."
import pytest, torch, torch.nn.functional as F
from torch import nn

from helpers.learners import make_learner, quiet, small
from focusnet_fastai.loss import entropies
from focusnet_fastai.methods.distil import KD
from focusnet_fastai.methods.regularise import ConfidencePenalty, CrossEntropy, Focal, LabelSmoothing, smoothed_labels

z, t = torch.tensor([[2., .5, -1., .1]], dtype=torch.float64), torch.tensor([0])


@pytest.fixture(scope='module')
def data(): return small(n_train=64, bs=16)


@pytest.mark.parametrize('cb,want', [
    (CrossEntropy(), .352406), (LabelSmoothing(), .512406), (LabelSmoothing(others=True), .565739), (LabelSmoothing(0.), .352406),
    (Focal(), .031086), (Focal(0.), .352406), (ConfidencePenalty(), .263159), (ConfidencePenalty(0.), .352406), (ConfidencePenalty(threshold=.5), .352406-.05)])
def test_golden_values(cb, want):
    terms = cb.terms(z, t)
    assert sum(w*terms[k] for k, w in cb.weights.items()).item() == pytest.approx(want, abs=1e-6)


def test_smoothed_labels_keep_their_sum():
    y = torch.tensor([[1., 0., 0.], [.5, .25, .25]])
    for others in (False, True):
        got = smoothed_labels(y, .3, others)
        assert torch.allclose(got.sum(1), torch.ones(2))
    assert torch.allclose(got[1], .7*y[1] + .3*(1-y[1])/2)


def test_entropy_gradient():
    a = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    entropies(a).mean().backward()
    p = a.detach().softmax(1)
    h = -(p*p.log()).sum(1, keepdim=True)
    assert torch.allclose(a.grad, -p*(p.log() + h)/4)


def test_probability_targets_are_linear():
    "One-hot probabilities are class indices; a blend of labels is the blend of the losses"
    a, y, y1 = torch.randn(6, 4), torch.tensor([0, 1, 2, 3, 0, 1]), torch.tensor([1, 1, 0, 2, 3, 0])
    kd = KD(nn.Identity()); kd.baseline_logits = torch.randn(6, 4)
    for cb in (CrossEntropy(), LabelSmoothing(), LabelSmoothing(others=True), Focal(), ConfidencePenalty(), kd):
        one = lambda o: F.one_hot(o, 4).float()
        for k in cb.weights:
            assert torch.allclose(cb.terms(a, y)[k], cb.terms(a, one(y))[k])
            want = .3*cb.terms(a, y)[k] + .7*cb.terms(a, y1)[k]
            assert torch.allclose(cb.terms(a, .3*one(y) + .7*one(y1))[k], want, atol=1e-5)


def test_cross_entropy_is_plain_training(data):
    nets = []
    for cbs in ([], [CrossEntropy()]):
        learn = make_learner(data)
        with quiet(learn): learn.fit(2, 3e-3, cbs=cbs)
        nets.append(learn.model)
    for p, q in zip(*[n.parameters() for n in nets]): assert torch.allclose(p, q, atol=1e-6)


def test_lr_find_with_a_strong_penalty(data):
    "A loss that is far below 0 must not stop the search"
    learn = make_learner(data)
    with quiet(learn): learn.fit(4, 3e-3, cbs=ConfidencePenalty(3.))
    assert learn.recorder.values[-1][0] < 0
    with learn.no_bar(), learn.added_cbs(ConfidencePenalty(3.)): learn.lr_find(show_plot=False, num_it=20)
    assert len(learn.recorder.lrs) > 10 and min(learn.recorder.losses) >= 0
