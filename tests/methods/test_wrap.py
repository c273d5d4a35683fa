"What wrapping refuses, what new loaders do, and whose features are read."
from functools import partial
import pytest, torch
from torch import nn
from torchvision.models import GoogLeNet
from fastai.vision.all import DataLoaders, Learner, OptimWrapper, TfmdDL, accuracy, resnet18, vision_learner

from helpers.learners import make_learner, quiet, same, small, state
from helpers.methods import bn_net, tiny_resnet
from focusnet_fastai.methods.byot import BYOT
from focusnet_fastai.methods.distil import KD
from focusnet_fastai.methods.dropmax import DropMax
from focusnet_fastai.methods.frskd import FocusFRSKD, FRSKD, FRSKDF
from focusnet_fastai.methods.one import ONE
from focusnet_fastai.methods.views import CSKD, DDGSD, PartnersDL, RotationsDL, SLA
from focusnet_fastai.methods.wrap import check_whole, FeatureNetwork
from focusnet_fastai.models import lenet5


@pytest.fixture(scope='module')
def data(): return small(n_train=64, bs=16)


def test_other_outputs_are_refused():
    class Scaled(nn.Module):
        def __init__(self): super().__init__(); self.net = bn_net()
        def forward(self, x): return 2*self.net(x)
    with pytest.raises(ValueError, match="Scaled is not that of its Linear layer 'net.5'"): FeatureNetwork(Scaled(), 10).train()(torch.randn(2, 1, 16, 16))
    with pytest.raises(ValueError, match='no Linear layer with 9 outputs'): FeatureNetwork(bn_net(), 9)


def test_training_images_are_validated_as_they_are(data):
    learn = make_learner(data)
    learn2 = SLA.wrap(learn)
    with quiet(learn), quiet(learn2): assert list(learn2.validate(0)) == pytest.approx(list(learn.validate(0)), abs=1e-5)
    with quiet(learn2): assert learn2.get_preds(0)[0].shape == (64, 10)


WRAPS = [CSKD, DDGSD, SLA, DropMax, FRSKD, FRSKDF, FocusFRSKD, BYOT, ONE]
STAGED = [FRSKD, FRSKDF, FocusFRSKD, BYOT, ONE]


@pytest.mark.parametrize('cls', WRAPS)
def test_what_is_not_wrapped_is_refused(data, cls):
    learn = make_learner(data)
    with pytest.raises(ValueError, match=rf'learn2 = {cls.__name__}.wrap\(learn\)'), quiet(learn): learn.fit(1, cbs=cls())


@pytest.mark.parametrize('cls', STAGED)
def test_networks_without_stages_are_refused_at_once(data, cls):
    with pytest.raises(ValueError, match='four `Sequential`s'): cls.wrap(make_learner(data))


@pytest.mark.parametrize('cls', [DDGSD, SLA, DropMax])
def test_networks_whose_last_layer_is_not_their_output(data, cls):
    net = nn.Sequential(nn.Flatten(), nn.Linear(1024, 10), nn.Softmax(1))
    learn2 = cls.wrap(make_learner(data, model=net))
    before = state(net)
    with pytest.raises(ValueError, match="not that of its Linear layer '1'"), quiet(learn2): learn2.fit(1)
    assert same(before, state(net))


def with_auxiliary_heads():
    net = GoogLeNet(num_classes=10, init_weights=False)
    net.conv1.conv = nn.Conv2d(1, 64, 7, 2, 3, bias=False)
    net.transform_input = False
    return net


@pytest.mark.parametrize('cls', [DDGSD, SLA, DropMax, *STAGED])
def test_auxiliary_heads_are_refused(cls):
    "Their loss would be lost: before the first step, with the way out"
    net = with_auxiliary_heads()
    before = state(net.fc)
    with pytest.raises(ValueError, match='make it without them \\(aux_logits=False\\)|stages of GoogLeNet are not known'):
        cls().network(net, 10).train()(torch.randn(2, 1, 64, 64))
    assert same(before, state(net.fc))


def test_learners_that_cannot_be_wrapped(data, base):
    learn2 = CSKD.wrap(make_learner(data))
    with pytest.raises(ValueError, match='wrapped already, by CSKD: wrap `learn.unwrap\\(\\)`'): SLA.wrap(learn2)
    with pytest.raises(ValueError, match='has the method KD already'): SLA.wrap(make_learner(data, cbs=KD(base)))
    opt = OptimWrapper(opt=torch.optim.SGD(learn2.model.parameters(), .1))
    with pytest.raises(ValueError, match='use a function, as in partial'): CSKD.wrap(make_learner(data, opt_func=opt))
    unknown = DataLoaders(*[TfmdDL([(torch.zeros(1, 32, 32), torch.tensor(0))]*4, bs=2, num_workers=0)]*2)
    with pytest.raises(ValueError, match='set `dls.c`'): CSKD.wrap(Learner(unknown, lenet5(10), loss_func=nn.CrossEntropyLoss()))


def test_wrong_counts_are_named():
    for v in (1, 2.5, '3', None):
        with pytest.raises(ValueError, match=f'`branches` must be a whole number from 2 on, but is {v!r}'): check_whole(2, branches=v)
    check_whole(2, branches=2)


@pytest.mark.parametrize('cls', [CSKD, SLA, DropMax])
def test_new_loaders(data, cls):
    "Progressive resizing: set on the wrapped learner, or only its training loader, they are grouped as the first ones were"
    learn = make_learner(data, model=bn_net())
    learn2 = cls.wrap(learn)
    kind = type(learn2.dls.train)
    with quiet(learn2): learn2.fit(1, 1e-3)
    larger = small(n_train=48, bs=24)
    for dl in larger: dl.dataset.x = nn.functional.interpolate(dl.dataset.x.float(), size=40).to(dl.dataset.x.dtype)
    learn2.dls = larger
    assert type(learn2.dls.train) is kind and learn2.dls.valid is larger.valid
    with quiet(learn2): learn2.fit(1, 1e-3)
    plain = learn2.unwrap()
    assert plain.dls is larger and learn2.recorder.iters[-1] == 2 and plain.predict(larger.valid_ds[0][0])[2].shape == (10,)
    learn2.dls.train = data.train
    with quiet(learn2): learn2.fit(1, 1e-3)
    assert type(learn2.dls.train) is kind and learn2.recorder.iters[-1] == 4 and learn2.unwrap().dls.train is data.train
    few = small(n_train=48, bs=24)
    few.c = 5
    with pytest.raises(ValueError, match='The new loaders have 5 classes, but the network and its extra parts 10'): learn2.dls = few


@pytest.mark.slow
def test_frozen_bodies():
    "The extra parts train with the last group; unfrozen again, all do"
    data = small(n_train=8, bs=8)
    for cls in (SLA, FRSKD):
        learn = vision_learner(data, resnet18, pretrained=False, n_in=1, metrics=accuracy)
        learn.freeze()
        learn2 = cls.wrap(learn)
        assert len(learn2.opt.param_lists) == len(learn.opt.param_lists) and learn2.opt.frozen_idx == learn.opt.frozen_idx > 0
        last, own = {id(p) for p in learn2.opt.param_lists[-1]}, {id(p) for p in learn.model.parameters()}
        extra = [p for p in learn2.model.parameters() if id(p) not in own]
        assert extra and all(id(p) in last and p.requires_grad for p in extra) and not learn2.model.net[0][0].weight.requires_grad
        before = learn.model[0][0].weight.clone()
        with quiet(learn2): learn2.fit(1, 1e-3)
        assert torch.equal(before, learn.model[0][0].weight)
        learn2.unfreeze()
        with quiet(learn2): learn2.fit(1, 1e-3)
        assert not torch.equal(before, learn2.unwrap().model[0][0].weight)


def test_a_method_that_was_removed(data):
    learn2 = SLA.wrap(make_learner(data))
    method = learn2.method
    learn2.remove_cb(SLA)
    before = state(learn2.model)
    with pytest.raises(ValueError, match='SLA was removed.*learn2.add_cb'), quiet(learn2): learn2.fit_one_cycle(1)
    with quiet(learn2): assert len(learn2.validate()) == 2 and same(before, state(learn2.model))
    learn2.add_cb(method)
    with quiet(learn2): learn2.fit(1, 1e-3)
    assert list(learn2.recorder.metric_names)[4:-1] == ['joint', 'cls', 'kd']
