"Margins over a training: those of the images that they are said to be of, whatever the loader; and probabilities of images held out."
import random
import numpy as np, pytest, torch
from fastai.vision.all import Callback, Learner, WeightedDL, nn, set_seed
from fastai.callback.mixup import MixUp
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.model_selection import StratifiedKFold, cross_val_predict

from helpers.learners import quiet, same, small, state
from focusnet_fastai.margins import (LabelEvidence, MarginRecorder, confident_class, contradiction, held_out_evidence,
                                     held_out_probabilities, margins, rivals, self_confidence, training_evidence, typical_margins)


def mlp(): return nn.Sequential(nn.Flatten(), nn.Linear(1024, 16), nn.ReLU(), nn.Linear(16, 10))


def learner(dls, seed=0, **kw):
    set_seed(seed)
    dls.train.rng = random.Random(seed)
    return Learner(dls, mlp(), **kw)


class Watch(Callback):
    "Logits of each training image by its pixels, as they come"
    run_valid = False
    def before_fit(self): self.seen = {}
    def after_pred(self):
        for x, z, y in zip(self.x, self.pred.detach(), self.y): self.seen.setdefault(bytes(x.numpy().round(3)), []).append((z, int(y)))


def watched(learn, watch):
    "Margins and rivals of all training images, counted one by one"
    res = []
    dl = learn.dls.train.new(shuffle=False, drop_last=False)
    for x in torch.cat([b[0] for b in dl]):
        rows = watch.seen.get(bytes(x.numpy().round(3)), [])
        m, p, label = [], torch.zeros(10), 0
        for z, label in rows:
            m.append(float(z[label] - max(z[k] for k in range(10) if k != label)))
            p += z.softmax(0)
        p[label] = -1
        res.append((np.mean(m) if m else np.nan, int(p.argmax())))
    return map(np.array, zip(*res))


def test_against_loops():
    g = torch.Generator().manual_seed(0)
    z, y = torch.randn(6, 4, generator=g), torch.tensor([0, 1, 2, 3, 0, 1])
    want = [float(row[c] - max(row[k] for k in range(4) if k != c)) for row, c in zip(z, y.tolist())]
    assert torch.allclose(margins(z, y), torch.tensor(want))
    assert rivals(z, y).tolist() == [max((k for k in range(4) if k != c), key=lambda k: row[k]) for row, c in zip(z, y.tolist())]


def test_epochs_that_missed_an_image():
    g = torch.Generator().manual_seed(0)
    zs, y = torch.randn(3, 5, 4, generator=g), torch.tensor([0, 1, 2, 3, 0])
    zs[1, 2], zs[:, 4] = torch.nan, torch.nan
    ev = training_evidence(zs, y)
    assert torch.allclose(ev.margin[2], (margins(zs[0], y)[2] + margins(zs[2], y)[2])/2) and ev.margin[4].isnan()
    assert contradiction(ev, y, 4)[4] == -torch.inf


@pytest.mark.parametrize('kind', ['shuffled', 'odd last batch', 'last batch dropped', 'workers', 'weighted'])
def test_recorder_knows_its_images(kind):
    dls = small(n_train=72 if 'last' in kind else 64, bs=16, drop_last='dropped' in kind, num_workers=2 if kind == 'workers' else 0)
    if kind == 'weighted': dls.loaders[0] = dls.train.new(cls=WeightedDL, wgts=np.arange(64)+1., shuffle=True)
    learn, watch, rec = learner(dls), Watch(), MarginRecorder()
    with quiet(learn): learn.fit(2, 1e-3, cbs=[watch, rec])
    margin, rival = watched(learn, watch)
    np.testing.assert_allclose(rec.margin.numpy(), margin, atol=1e-4)
    seen = ~np.isnan(margin)
    assert (rec.rival.numpy() == rival)[seen].all() and seen.sum() > 40


def test_nothing_but_training_counts():
    learn = learner(small(n_train=64, bs=16))
    plain, rec = learner(small(n_train=64, bs=16)), MarginRecorder()
    learn.add_cb(rec)
    with quiet(learn), quiet(plain):
        assert rec.margin is None and rec.rival is None
        learn.validate()
        assert rec.margin is None
        learn.fit(2, 1e-3)
        plain.fit(2, 1e-3)
        assert same(state(learn.model), state(plain.model)) # the training is as it was
        first = rec.margin.clone()
        learn.validate()
        learn.get_preds(ds_idx=0)
        learn.predict(learn.dls.train_ds.x[0])
        learn.lr_find(num_it=20, show_plot=False)
        assert torch.equal(rec.margin, first)
        learn.fit(1, 1e-3)
        assert rec.count.max() == 1 and not torch.equal(rec.margin, first) # a new training begins anew
        learn.fit(3, 1e-3, start_epoch=2)
        assert rec.count.max() == 2 # and one that goes on goes on


def test_last_rivals_where_probabilities_take_too_much():
    learn, rec = learner(small(n_train=64, bs=64, shuffle=False, drop_last=False)), MarginRecorder(most=10)
    with quiet(learn):
        z0, y = learn.get_preds(ds_idx=0, act=lambda o: o)
        learn.fit(1, 0., cbs=rec)
    assert rec.chances is None and torch.equal(rec.rival, rivals(z0, y))


def test_probabilities_as_targets_and_mixed_images():
    dls = small(n_train=32, bs=32, shuffle=False)
    one_hot = torch.nn.functional.one_hot(dls.train_ds.y, 10).float()
    a, b = MarginRecorder(), MarginRecorder()
    for rec, change in ((a, None), (b, one_hot)):
        learn = learner(dls, loss_func=nn.CrossEntropyLoss())
        class Targets(Callback):
            order = -10
            def before_batch(self):
                if change is not None and self.training: self.learn.yb = (change,)
        with quiet(learn): learn.fit(1, 0., cbs=[rec, Targets()])
    assert torch.allclose(a.margin, b.margin)
    learn = learner(dls)
    with quiet(learn), pytest.raises(ValueError, match='MixUp mixes images'): learn.fit(1, 0., cbs=[MixUp(), MarginRecorder()])


def test_contradiction_is_measured_by_the_rival():
    y = torch.tensor([0, 0, 0, 1, 1, 1])
    ev = LabelEvidence(torch.tensor([1., 2, -2, 4, 8, -2]), torch.tensor([1, 1, 1, 0, 0, 0]), 'training')
    assert typical_margins(ev.margin, y, 3).tolist() == [1., 4., 2.] # the class without images: the middle of all
    assert contradiction(ev, y, 3).tolist() == [-.25, -.5, .5, -4, -8, 2]


def test_held_out_is_cross_validation():
    g = torch.Generator().manual_seed(0)
    y = torch.arange(60)%3
    f = torch.randn(60, 4, generator=g) + y[:, None]
    probe, parts = LinearDiscriminantAnalysis(solver='lsqr', shrinkage=.1), StratifiedKFold(5, shuffle=True, random_state=0)
    want = cross_val_predict(probe, f.numpy(), y.numpy(), cv=parts, method='predict_proba')
    np.testing.assert_allclose(held_out_probabilities(f, y, 4)[:, :3].numpy(), want, atol=1e-6)
    rare = torch.cat([y, torch.tensor([3])]) # one image is in one part, and unknown to the last layer that it is shown
    assert held_out_probabilities(torch.cat([f, f[:1]]), rare, 4)[-1, 3] == 0


def test_confident_learning_as_cleanlab_has_it():
    count = pytest.importorskip('cleanlab.count')
    g = torch.Generator().manual_seed(0)
    y = torch.arange(90)%3
    p = (torch.randn(90, 3, generator=g) + 2*torch.nn.functional.one_hot(y, 3)).softmax(1)
    y[:5] = (y[:5]+1)%3
    np.testing.assert_allclose(self_confidence(p, y).numpy(), count.get_confident_thresholds(y.numpy(), p.numpy()), atol=1e-6)
    joint, theirs = torch.zeros(3, 3, dtype=int), count.compute_confident_joint(y.numpy(), p.numpy(), calibrate=False)
    for a, b in zip(y.tolist(), confident_class(p, y).tolist()):
        if b >= 0: joint[a, b] += 1
    off = ~torch.eye(3, dtype=bool)
    assert torch.equal(joint[off], torch.tensor(theirs)[off])
    assert (held_out_evidence(p, y).margin < 0).sum() == (p.argmax(1) != y).sum()
