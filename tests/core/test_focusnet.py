"FocusNetCallback, fresh networks and refocus, on real digits."
import copy, math
from functools import partial
import numpy as np, pandas as pd, pytest, torch, torch.nn.functional as F
from torch import nn
from fastai.vision.all import (Callback, CrossEntropyLossFlat, DataLoaders, GradientAccumulation, Learner, L, MixedPrecision, Normalize, OptimWrapper, Pipeline, RMSProp,
                               SaveModelCallback, TfmdDL, accuracy, load_learner, default_split, set_seed, trainable_params, vision_learner, error_rate)

import focusnet_fastai.compare  # for `learn.compare`
from focusnet_fastai.focusnet import FocusNetCallback, focus_settings, rebuilt, reinitialised
from focusnet_fastai.loss import multi_warm_label
from focusnet_fastai.models import half_mobilenet_v2, lenet5, small_resnet18
from helpers.learners import InBatch, make_learner, quiet

pytestmark = pytest.mark.slow  # as a whole; `make quick` leaves it out


def tiny_resnet(weights=None, pretrained=False, file=None):
    "A network in the shape that vision_learner expects: a body of children, then pool and classifier"
    net = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 16, 3, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5))
    if pretrained or weights: net.load_state_dict(torch.load(PRETRAINED, weights_only=True))
    return net


@pytest.fixture(scope='module')
def pretrained(tmp_path_factory):
    "Weights on disk, as torchvision keeps them"
    global PRETRAINED
    PRETRAINED = tmp_path_factory.mktemp('hub')/'tiny.pth'
    set_seed(99)
    state = tiny_resnet().state_dict()
    torch.save(state, PRETRAINED)
    return state


class Items(list): loss_func = CrossEntropyLossFlat()


@pytest.fixture(scope='module')
def rgb(dls):
    "The digits with three channels"
    ds = [[(torch.as_tensor(x).expand(3, -1, -1).clone(), y) for x, y in [d[i] for i in range(n)]] for d, n in zip((dls.train_ds, dls.valid_ds), (128, 64))]
    d = DataLoaders(*[TfmdDL(Items(o), bs=32, shuffle=i == 0) for i, o in enumerate(ds)])
    d.c, d.vocab = 10, dls.vocab
    return d


# --- the callback --------------------------------------------------------------------------------------------------------

def test_others_see_logits_and_label(dls, base):
    learn, ok = make_learner(dls), []
    def look(l):
        z = base.model.eval()(l.x)
        ok.append(torch.allclose(l.focus_net.baseline_logits, z) and torch.equal(l.focus_net.multi_warm, multi_warm_label(z, l.y, 'released')))
    with quiet(learn): learn.fit(1, 1e-3, cbs=[FocusNetCallback(base, rule='released'), InBatch(look)])
    assert len(ok) == 4 and all(ok)


def test_ablations_are_arguments(dls, base):
    "With alpha = beta = 0 and the student's own copy as baseline on the first step, the loss is cross-entropy"
    learn, first = make_learner(dls), []
    twin = copy.deepcopy(learn.model).eval()
    with quiet(learn): learn.fit(1, 1e-3, cbs=[FocusNetCallback(twin, alpha=0, beta=0), InBatch(lambda l: first.append(
        (l.loss.item(), F.cross_entropy(l.pred, l.y).item())))])
    assert first[0][0] == pytest.approx(first[0][1], abs=1e-5)


def test_arguments_change_the_training(dls, base):
    res = []
    for kw in (dict(), dict(rule='released'), dict(label_smoothing=.1), dict(detach=True), dict(alpha=0.), dict(beta=0.)):
        learn = make_learner(dls)
        with quiet(learn): learn.fit(1, 1e-2, cbs=FocusNetCallback(base, **kw))
        res.append(torch.cat([p.detach().flatten() for p in learn.model.parameters()]))
    for i, a in enumerate(res):
        for b in res[:i]: assert not torch.allclose(a, b, atol=1e-6)


# --- fresh networks --------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('make', [lambda: lenet5(10), lambda: small_resnet18(10), lambda: half_mobilenet_v2(10),
                                  lambda: nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))])
def test_nothing_survives_a_reinitialisation(make):
    set_seed(0)
    old = make()
    with torch.no_grad():
        for k, t in old.state_dict().items(): t.fill_(7)  # a value that no initialisation draws
    old.requires_grad_(False).eval()
    new = reinitialised(old)
    for k, t in new.state_dict().items(): assert not (t == 7).any() and t.float().isfinite().all(), k
    assert all(p.requires_grad for p in new.parameters()) and not any(p.requires_grad for p in old.parameters())
    assert all((t == 7).all() for t in old.state_dict().values())


def test_what_no_module_resets_is_named():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.lin, self.scale = nn.Linear(3, 3), nn.Parameter(torch.ones(3))
            self.register_buffer('running', torch.ones(3))
            self.register_buffer('grid', torch.ones(3), persistent=False)
    with pytest.raises(ValueError, match=r'Sequential.*1\.scale, 1\.running\..*`model`') as e: reinitialised(nn.Sequential(nn.ReLU(), Block()))
    assert 'grid' not in str(e.value) and 'lin' not in str(e.value)


def test_vision_learner_is_rebuilt(rgb, pretrained):
    "Pretrained body included, on both sides; nothing that the old learner learned survives"
    base = vision_learner(rgb, tiny_resnet, metrics=accuracy, normalize=False, ps=.25, lin_ftrs=[32])
    with quiet(base): base.fine_tune(2, 1e-2)
    new = base.fresh_learner()
    body, head = new.model
    for k, v in body.state_dict().items(): assert torch.equal(v, pretrained[k]), k
    old = base.model.state_dict()
    same = [k for k, v in new.model.state_dict().items() if v.numel() > 1 and torch.equal(v, old[k]) and k.startswith('1.')]
    assert all(k.endswith(('running_mean', 'running_var', 'bias', 'weight')) and torch.equal(head.state_dict()[k[2:]].unique(), head.state_dict()[k[2:]].unique()[:1]) for k in same)
    assert not torch.equal(body[0].weight, base.model[0][0].weight)
    assert [m.p for m in head if isinstance(m, nn.Dropout)] == [.125, .25]
    with quiet(base): learn = base.refocus(1, 1e-2)
    assert learn.opt.frozen_idx == 0 and learn.arch is tiny_resnet
    with quiet(base): again = learn.refocus(1, 1e-2)  # a rebuilt learner can be rebuilt
    assert again.arch is tiny_resnet


def test_frozen_vision_learner_trains_the_head_alone(rgb, pretrained):
    base = vision_learner(rgb, tiny_resnet, normalize=False)
    with quiet(base):
        base.fit_one_cycle(1, 1e-2)
        learn = base.refocus(1, 1e-2)
    assert learn.opt.frozen_idx == base.opt.frozen_idx > 0
    assert torch.equal(learn.model[0][0].weight.cpu(), pretrained['0.weight'])  # frozen: still pretrained
    assert not torch.equal(learn.model[1][-1].weight, base.model[1][-1].weight)


def test_scratch_vision_learner(rgb, pretrained):
    base = vision_learner(rgb, tiny_resnet, pretrained=False)
    with quiet(base):
        base.fit_one_cycle(1, 1e-2)
        learn = base.refocus(1, 1e-2)
    assert not torch.equal(learn.model[0][0].weight.cpu(), pretrained['0.weight']) and learn.opt.frozen_idx == 0


def test_timm_learner(rgb):
    pytest.importorskip('timm')
    base = vision_learner(rgb, 'resnet10t', pretrained=False)
    new = base.fresh_learner()
    a, b = base.model.state_dict(), new.model.state_dict()
    assert {k: v.shape for k, v in a.items()} == {k: v.shape for k, v in b.items()}
    assert not any(torch.equal(a[k], b[k]) for k in a if k.endswith('conv.weight') or k.endswith('conv1.weight'))


def test_lost_cut_is_named(rgb, pretrained):
    base = vision_learner(rgb, tiny_resnet, pretrained=False, normalize=False)
    base.model[0] = nn.Sequential(nn.Conv2d(3, 9, 3))
    with pytest.raises(ValueError, match='pass `model`'): rebuilt(base)


# --- refocus -------------------------------------------------------------------------------------------------------------------

def test_refocus_keeps_the_conditions(dls, tmp_path):
    loss = CrossEntropyLossFlat()
    def halves(m): return L(list(m.children())[:3], list(m.children())[3:]).map(lambda o: [p for c in o for p in c.parameters()])
    base = make_learner(dls, loss_func=loss, opt_func=RMSProp, splitter=halves, wd=.03, wd_bn_bias=True, train_bn=False, moms=(.9, .8, .9),
                        path=tmp_path, model_dir='m', lr=.01, cbs=[GradientAccumulation(64), SaveModelCallback(fname='base')])
    base.metrics = [accuracy, error_rate]
    with quiet(base): base.fit_one_cycle(1, 1e-3)
    saved = (tmp_path/'m'/'base.pth').read_bytes()
    before = {k: v.clone() for k, v in base.model.state_dict().items()}
    with quiet(base): learn = base.refocus(2, 1e-3)
    for k in ('loss_func', 'opt_func', 'splitter', 'wd', 'wd_bn_bias', 'train_bn', 'moms', 'path', 'model_dir', 'lr', 'dls'):
        assert getattr(learn, k) == getattr(base, k), k
    assert learn.metrics.attrgot('name') == ['accuracy', 'error_rate'] and learn.metrics[0] is not base.metrics[0]
    assert len(learn.opt.param_lists) == 2 and type(learn.opt) is type(base.opt)
    assert learn._grab_cbs(GradientAccumulation) and not learn._grab_cbs((SaveModelCallback, FocusNetCallback))
    assert (tmp_path/'m'/'base.pth').read_bytes() == saved
    assert all(torch.equal(v, before[k]) for k, v in base.model.state_dict().items())
    assert len(learn.recorder.values) == 2 and len(learn.recorder.values[0]) == 7
    olds = [p for p in base.model.parameters()]
    assert not any(torch.equal(a, b) for a in olds for b in learn.model.parameters() if a.shape == b.shape)


def test_refocus_passes_arguments_on(dls, base):
    seen = []
    class Look(Callback):
        def before_fit(self): seen.append((self.focus_net.alpha, self.focus_net.beta, self.focus_net.rule, self.focus_net.label_smoothing, self.focus_net.detach))
    with quiet(base): base.refocus(1, 1e-3, alpha=.5, beta=.25, rule='released', label_smoothing=.1, detach=True, cbs=Look(), wd=.2)
    assert seen == [(.5, .25, 'released', .1, True)]


@pytest.mark.parametrize('model', [lenet5(10), partial(lenet5, 10), lambda: nn.Sequential(nn.Flatten(), nn.Linear(1024, 10))])
def test_refocus_with_a_network_or_a_function(dls, base, model):
    with quiet(base): learn = base.refocus(1, 1e-3, model=model)
    if isinstance(model, nn.Module): assert learn.model is model
    assert len(learn.recorder.values[0]) == 6


def test_wrong_settings_are_refused_at_once(dls, base):
    for kw, words in ((dict(alpha=-1), 'alpha'), (dict(beta=-.1), 'beta'), (dict(rule='warmest'), 'warmest'), (dict(label_smoothing=2), 'label_smoothing'), (dict(alpha=math.nan), 'alpha')):
        with pytest.raises(ValueError, match=words): FocusNetCallback(base, **kw)
        with pytest.raises(ValueError, match=words): base.refocus(1, 1e-3, **kw)
    with pytest.raises(ValueError, match="'best'.*paper, released, few"): base.refocus(1, 1e-3, settings='best')
    with pytest.raises(ValueError, match='n_epoch'): base.refocus(0, 1e-3)


def test_a_reloaded_learner_without_data_is_refused(dls, base, tmp_path):
    base.export(tmp_path/'base.pkl')
    with pytest.raises(ValueError, match=r'not one batch.*learn\.dls = dls'): load_learner(tmp_path/'base.pkl').refocus(1, 1e-3)


class NoteSettings(Callback):
    def before_fit(self): self.seen = {k: getattr(self.focus_net, k) for k in focus_settings['paper']}


def settings_of(base, **kw):
    note = NoteSettings()
    with quiet(base): base.refocus(1, 1e-3, cbs=note, **kw)
    return note.seen


def test_settings_of_networks_trained_from_scratch(dls, base):
    assert settings_of(base) == focus_settings['few'] == dict(alpha=.5, beta=1, rule='released', label_smoothing=0, detach=False)
    assert settings_of(base, settings='paper') == dict(alpha=1, beta=1, rule='positive', label_smoothing=0, detach=False)
    assert settings_of(base, settings='released') == dict(alpha=1, beta=1, rule='released', label_smoothing=.1, detach=False)
    assert settings_of(base, settings='pretrained', beta=.5, alpha=0.) == focus_settings['pretrained'] | dict(beta=.5, alpha=0)
    many = copy.copy(dls)
    many.c = 21
    wide = make_learner(many, model=lenet5(21))
    with quiet(wide): wide.fit(1, 1e-3)
    assert settings_of(wide) == focus_settings['released'] == dict(alpha=1, beta=1, rule='released', label_smoothing=.1, detach=False)


def test_settings_of_pretrained_networks(rgb, pretrained):
    "No entropy term and a soft label, unless told otherwise; the columns still add up"
    base = vision_learner(rgb, tiny_resnet, normalize=False)
    with quiet(base): base.fine_tune(1, 1e-2)
    assert settings_of(base) == focus_settings['pretrained'] == dict(alpha=1, beta=0, rule='soft', label_smoothing=0, detach=False)
    assert settings_of(base, settings='paper') == focus_settings['paper']
    assert settings_of(base, rule='positive')['rule'] == 'positive'
    assert settings_of(base, model=vision_learner(rgb, tiny_resnet, pretrained=False, normalize=False).model) == focus_settings['few']  # whoever brings a network knows what it is
    with quiet(base): train, _, cls, attention, entropy = base.refocus(1, 1e-2).recorder.values[-1]
    assert cls + attention == pytest.approx(train, abs=1e-5)
    scratch = vision_learner(rgb, tiny_resnet, pretrained=False, normalize=False)
    with quiet(scratch): scratch.fit(1, 1e-2)
    assert settings_of(scratch) == focus_settings['few']


class BreakOff(Callback):
    def __init__(self, error, epoch): self.error, self.at = error, epoch
    def before_epoch(self):
        if self.epoch == self.at: raise self.error('stop')


@pytest.mark.parametrize('error', [KeyboardInterrupt, MemoryError])
def test_a_refocus_that_breaks_off_keeps_what_it_learned(dls, error, tmp_path):
    base = make_learner(dls, path=tmp_path)
    with quiet(base):
        base.fit(1, 1e-3)
        assert base.refocused is None
        with pytest.raises(error) as e: base.refocus(5, 3e-3, cbs=BreakOff(error, 3))
        learn = base.refocused
        assert len(learn.recorder.values) == 3 and (error is not KeyboardInterrupt or '`learn = base.refocused`' in str(e.value))
        assert not learn._grab_cbs(FocusNetCallback)
    with quiet(learn): learn.fit(1, 1e-3, cbs=FocusNetCallback(base))
    size = lambda: (base.export('a.pkl'), (tmp_path/'a.pkl').stat().st_size)[1]
    with_it = size()
    with quiet(base): base.refocus(1, 1e-3)
    assert base.refocused is None and abs(size() - with_it) < 2000


def test_refocus_refuses_the_own_network(dls, base):
    with pytest.raises(ValueError, match='own baseline'), quiet(base): base.refocus(1, 1e-3, model=base.model)


def test_bound_optimiser_is_refused(dls):
    net = lenet5(10)
    base = Learner(dls, net, opt_func=OptimWrapper(opt=torch.optim.SGD(net.parameters(), .1)))
    with pytest.raises(ValueError, match='old network'): base.refocus(1, 1e-3)


# --- photographs -----------------------------------------------------------------------------------------------------------------

def test_smoke_on_imagewoof():
    "A few steps on real photographs, where the data set is installed"
    from fastai.data.external import fastai_cfg
    from focusnet_fastai.data.photos import imagewoof_dls
    if not (fastai_cfg().path('data')/'imagewoof2-160').exists():
        pytest.skip('Imagewoof is not installed: untar_data(URLs.IMAGEWOOF_160) installs it')
    dls = imagewoof_dls(size=64, bs=16, num_workers=0)
    few = lambda dl, n: dl.new(get_idxs=lambda: list(range(0, len(dl.dataset), len(dl.dataset)//n))[:n])
    small = DataLoaders(few(dls.train, 48), few(dls.valid, 40))
    base = Learner(small, half_mobilenet_v2(10), metrics=accuracy)
    with quiet(base):
        base.fit_one_cycle(1, 1e-2)
        learn = base.refocus(1, 1e-2)
    c = learn.compare(base)
    assert len(c.y) == 40 and 'Dingo' in c.vocab and all(math.isfinite(v) for v in learn.recorder.values[0])
