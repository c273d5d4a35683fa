"Online label smoothing: an independent loop over real batches holds the class means and the loss."
import pytest, torch

from helpers.learners import CpuBf16, InBatch, make_learner, quiet, small
from focusnet_fastai.methods.online_smoothing import OnlineLabelSmoothing, class_means, right_sums


def test_golden_values():
    "By hand: half of -log p of the class, half of the cross-entropy with the mean answer; even in the first epoch"
    z, y = torch.tensor([[2., .5, -1., .1]], dtype=torch.float64), torch.tensor([0])
    ce = [.352406, 1.852406, 3.352406, 2.252406]
    cb = OnlineLabelSmoothing()
    def total(): return sum(w*cb.terms(z, y)[k] for k, w in cb.weights.items()).item()
    assert total() == pytest.approx(.5*ce[0] + .5*sum(ce)/4, abs=1e-6)
    cb.means = torch.tensor([[.7, .2, 0, .1]] + [[.25]*4]*3)
    assert total() == pytest.approx(.597406, abs=1e-6)
    assert OnlineLabelSmoothing(.2).weights == dict(cls=pytest.approx(.8), soft=.2)


@pytest.mark.parametrize('half', [False, True])
def test_means_and_losses_of_a_training(half):
    "Image by image in Python: the means of an epoch are the labels of the next; also where the network computes in half precision"
    dls, soft, sums, counts, losses = small(n_train=64, bs=16), None, {}, {}, []
    learn, cb = make_learner(dls), OnlineLabelSmoothing()
    def look(l):
        nonlocal soft
        if l.iter == 0:
            if l.epoch: soft = {c: sums[c]/counts[c] for c in sums}
            sums.clear(); counts.clear()
        pred, total = l.pred.detach().as_subclass(torch.Tensor), 0.
        for z, y in zip(pred, l.y.tolist()):
            logp = z.log_softmax(0)
            label = (soft or {}).get(y, torch.full((10,), .1))
            total -= .5*logp[y].item() + .5*(label*logp).sum().item()
            if int(z.argmax()) == y: sums[y], counts[y] = sums.get(y, 0) + z.softmax(0), counts.get(y, 0)+1
        losses.append((total/len(pred), l.loss.item()))
    with quiet(learn): learn.fit(4, 1e-2, cbs=[cb, InBatch(look)] + [CpuBf16('bf16')]*half)
    want, got = map(torch.tensor, zip(*losses))
    assert torch.allclose(want, got, atol=1e-5) and len(counts) > 3
    for c in range(10):
        mean = sums[c]/counts[c] if c in sums else torch.full((10,), .1)
        assert cb.means.dtype == torch.float32 and torch.allclose(cb.means[c], mean, atol=1e-5)


def test_labels_that_are_probabilities():
    "One-hot labels count as their classes; a soft one counts where its largest class is named"
    z, y = torch.randn(20, 5), torch.randint(5, (20,))
    a, b = right_sums(z, y), right_sums(z, torch.eye(5)[y])
    assert all(map(torch.equal, a, b)) and 0 < a[1].sum() < 20
    soft = torch.tensor([[.6, .4], [.6, .4]])
    sums, counts = right_sums(torch.tensor([[.9, .1], [.1, .9]]).log(), soft)
    assert torch.allclose(counts, soft[0]) and torch.allclose(class_means(sums, counts), torch.tensor([[.9, .1], [.9, .1]]))
