"PS-KD: the label, whose past it is, and what survives a kill. An independent loop over real batches holds the values."
import numpy as np, pytest, torch
from fastai.vision.all import WeightedDL

from helpers.learners import InBatch, make_learner, quiet, same, small, state
from helpers.two_processes import in_two_processes
from focusnet_fastai.methods.pskd import PSKD, past_label, past_weight


def test_golden_values():
    "By hand, in double precision: (1-a) y + a p, a = .8 t/T; plain cross-entropy where nothing is known"
    z = torch.tensor([[2., .5, -1., .1], [2., .5, -1., .1]], dtype=torch.float64)
    cb = PSKD()
    cb.past, cb.known = torch.tensor([[.5, .3, .1, .1]]*2, dtype=torch.float64), torch.tensor([True, False])
    cb.epoch, cb.n_epoch = 1, 4
    assert cb.terms(z, torch.tensor([0, 0]))['cls'].tolist() == pytest.approx([.728406, .352406], abs=1e-6)
    cb.epoch = 3
    want = .2*.352406 + .8*(.352406*.5 + 1.852406*.3 + 3.352406*.1 + 2.252406*.1)
    assert cb.terms(z, torch.tensor([0, 0]))['cls'][0].item() == pytest.approx(want, abs=1e-6)
    assert [past_weight(.8, o, 300) for o in (0, 149, 299)] == pytest.approx([.8/300, .4, .8])
    assert torch.allclose(past_label(torch.eye(3), torch.full((3, 3), 1/3), torch.ones(3).bool(), .6).diagonal(), torch.full((3,), .6))


@pytest.mark.parametrize('kind', ['shuffled', pytest.param('workers', marks=pytest.mark.slow), 'odd last batch', 'weighted'])
def test_the_past_of_each_image(kind):
    "A loop of its own: what was last said of each image, by its position in the data set, whatever the loader"
    dls = small(n_train=72 if kind == 'odd last batch' else 64, bs=16, drop_last=False, num_workers=2 if kind == 'workers' else 0)
    if kind == 'weighted': dls.loaders[0] = dls.train.new(cls=WeightedDL, wgts=np.arange(64)+1., shuffle=True)
    images_in_order = torch.cat([x.as_subclass(torch.Tensor) for x, _ in small(n_train=len(dls.train_ds), bs=16, shuffle=False, drop_last=False).train]).flatten(1)
    said, losses, images = {}, [], []
    learn = make_learner(dls)
    def look(l):
        rows = torch.cdist(l.x.as_subclass(torch.Tensor).flatten(1), images_in_order).argmin(1).tolist()
        a, logp, total = .8*(l.epoch+1)/3, l.pred.detach().as_subclass(torch.Tensor).log_softmax(1), 0.
        for i, row in enumerate(rows):
            y = torch.eye(10)[int(l.y[i])]
            label = (1-a)*y + a*said[row].softmax(0) if row in said else y
            total -= (label*logp[i]).sum().item()
        for i, row in enumerate(rows): said[row] = l.pred[i].detach().as_subclass(torch.Tensor)
        losses.append((total/len(rows), l.loss.item()))
        images.extend(rows)
    with quiet(learn): learn.fit(3, 1e-2, cbs=[PSKD(), InBatch(look)])
    want, got = map(torch.tensor, zip(*losses))
    assert torch.allclose(want, got, atol=2e-3) and (kind == 'weighted' or sorted(images) == sorted([*range(len(dls.train_ds))]*3))


def test_k_strongest_and_state():
    "With all classes kept it is the same training; a memory that was saved is the same memory"
    nets, cbs = [], [PSKD(), PSKD(k=10), PSKD(k=2)]
    for cb in cbs:
        learn = make_learner(small(n_train=64, bs=16))
        with quiet(learn): learn.fit(2, 1e-2, cbs=cb)
        nets.append(state(learn.model))
    assert same(nets[0], nets[1]) and not same(nets[0], nets[2])
    for cb in cbs:
        again = PSKD(k=cb.k)
        again.learn = make_learner(small(n_train=64, bs=16))
        again.load_state_dict(cb.state_dict())
        assert torch.equal(again.store.get(list(range(64))), cb.store.get(list(range(64)))) and again.store.filled.all()
        assert again.state_dict()['count'] == cb.count


def test_each_fit_begins_anew():
    "What the last training said is no past of this one"
    learn, cb, known = make_learner(small(n_train=64, bs=16)), PSKD(), []
    for _ in range(2):
        with quiet(learn): learn.fit(2, 1e-3, cbs=[cb, InBatch(lambda l: known.append(bool(cb.known.all())))])
    assert known == [False]*4 + [True]*4 + [False]*4 + [True]*4


@pytest.mark.slow
def test_two_processes(tmp_path):
    "Both know all that was said, in whichever process the image was; networks stay equal; class means are those of all images"
    assert in_two_processes(tmp_path, '''
        from focusnet_fastai.methods.online_smoothing import OnlineLabelSmoothing
        from focusnet_fastai.methods.pskd import PSKD
        for cb in (PSKD(), OnlineLabelSmoothing()):
            set_seed(0)
            learn = Learner(digits_dls(n_train=64, bs=8), lenet5(10))
            learn.known = []
            class Look(Callback):
                run_valid, order = False, 1
                def after_loss(self):
                    if isinstance(cb, PSKD): self.learn.known.append(cb.known.float().mean().item())
            with on_all_devices(learn), learn.no_bar(), learn.no_logging(): learn.fit(3, .01, cbs=[cb, Look()])
            assert same_in_both(learn.model)
            if isinstance(cb, PSKD):
                assert cb.store.filled.all() and same_in_both(cb.store.get(list(range(64)))), cb.store.filled.sum()
                assert learn.known == [0.]*4 + [1.]*8, learn.known
            else: assert same_in_both(cb.means) and torch.allclose(cb.means.sum(1), torch.ones(10), atol=1e-5)
            if not rank_distrib(): print('OK', type(cb).__name__)
    ''') == ['PSKD', 'OnlineLabelSmoothing']
