"Cross-entropy, label smoothing, focal loss, confidence penalty: values and gradients."
import math
import pytest, torch, torch.nn.functional as F
from torch import nn

from helpers.learners import make_learner, quiet, small
from focusnet_fastai.loss import entropies
from focusnet_fastai.methods.distil import KD
from focusnet_fastai.methods.regularise import ConfidencePenalty, CrossEntropy, Focal, LabelSmoothing, MaxSup, smoothed_labels

z, t = torch.tensor([[2., .5, -1., .1]], dtype=torch.float64), torch.tensor([0])


@pytest.fixture(scope='module')
def data(): return small(n_train=64, bs=16)


@pytest.mark.parametrize('cb,want', [
    (CrossEntropy(), .352406), (LabelSmoothing(), .512406), (LabelSmoothing(others=True), .565739), (LabelSmoothing(0.), .352406),
    (Focal(), .031086), (Focal(0.), .352406), (ConfidencePenalty(), .263159), (ConfidencePenalty(0.), .352406), (ConfidencePenalty(threshold=.5), .352406-.05),
    (MaxSup(), .352406+.1*1.6), (MaxSup(0.), .352406)])
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
    for cb in (CrossEntropy(), LabelSmoothing(), LabelSmoothing(others=True), MaxSup(), Focal(), ConfidencePenalty(), kd):
        one = lambda o: F.one_hot(o, 4).float()
        for k in cb.weights:
            assert torch.allclose(cb.terms(a, y)[k], cb.terms(a, one(y))[k])
            want = .3*cb.terms(a, y)[k] + .7*cb.terms(a, y1)[k]
            assert torch.allclose(cb.terms(a, .3*one(y) + .7*one(y1))[k], want, atol=1e-5)


def test_beta_by_confidence(data):
    "By the number of classes of the learner; the same training as with that beta; what cannot be is said"
    beta = 1/(.7*math.log(.7*9/.3))
    nets = []
    for cb in (ConfidencePenalty(confidence=.7), ConfidencePenalty(beta)):
        learn = make_learner(data)
        with quiet(learn): learn.fit(1, 3e-3, cbs=cb)
        assert cb.beta == pytest.approx(beta) and cb.weights['entropy'] == -cb.beta
        nets.append(learn.model)
    for p, q in zip(*[n.parameters() for n in nets]): assert torch.equal(p, q)
    with pytest.raises(ValueError, match='`confidence` must lie between chance, 1/10'): make_learner(data).fit(1, cbs=ConfidencePenalty(confidence=.1))
    p = torch.linspace(.11, .999, 8891, dtype=torch.float64)[:, None]  # the loss of one image is smallest where the class has .7
    z = torch.cat([p, ((1-p)/9).expand(-1, 9)], 1).log()
    assert p[(F.cross_entropy(z, torch.zeros(len(p)).long(), reduction='none') - beta*entropies(z)).argmin()].item() == pytest.approx(.7, abs=1e-3)


def test_maxsup_where_the_network_is_wrong():
    "By a loop: label smoothing where it is right; else the largest logit is pressed down, not that of the true class. The weight may grow"
    a, y = torch.randn(40, 6, dtype=torch.float64), torch.arange(40) % 6
    ours, theirs = MaxSup(.3).terms(a, y), LabelSmoothing(.3).terms(a, y)['cls']
    for i in range(40):
        want = -a[i].log_softmax(0)[y[i]] + .3*(max(a[i].tolist()) - sum(a[i].tolist())/6)
        assert (ours['cls'] + .3*ours['top'])[i].item() == pytest.approx(want.item(), abs=1e-12)
        assert (abs(want-theirs[i]) < 1e-9) == (int(a[i].argmax()) == y[i])
    cb = MaxSup(end=.2)
    for cb.epoch, cb.n_epoch, weight in ((0, 4, .1), (1, 4, .125), (3, 4, .175)):
        assert (cb.alpha*cb.terms(a, y)['top']).tolist() == pytest.approx((weight*ours['top']).tolist())
    with pytest.raises(ValueError, match='`alpha`'): MaxSup(0., end=.2)


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
