"The methods: golden values, what each may and may not touch, and the manners that all of them share."
import copy, math
from functools import partial
import pytest, torch, torch.nn.functional as F
from PIL import Image
from torch import nn
from fastai.vision.all import (Callback, CategoryBlock, CrossEntropyLossFlat, DataBlock, DataLoaders, ImageBlock, Learner, OptimWrapper, PILImageBW,
                               RandomSplitter, SGD, SkipItemException, TfmdDL, accuracy, get_image_files, load_learner, noop,
                               parent_label, resnet18, set_seed, vision_learner)
from fastai.callback.mixup import CutMix, MixUp
from fastai.callback.training import GradientAccumulation

from helpers.learners import CpuBf16, CtrlC, InBatch, make_learner, n_params, quiet, same, small, state
from helpers.methods import method_cases, plain
from helpers.two_processes import in_two_processes
from focusnet_fastai.data.memory import InMemoryLoaders
from focusnet_fastai.data.digits import digits_dls
from focusnet_fastai.methods.distil import KD, softened_kl, TfKD, TfKDReg, virtual_teacher
from focusnet_fastai.loss import cross_entropies, entropies
from focusnet_fastai.methods.regularise import ConfidencePenalty, CrossEntropy, Focal, LabelSmoothing
from focusnet_fastai.methods.views import (aggregated_logits, class_labels, CSKD, DDGSD, joint_labels, PartnersDL, RotationsDL, SLA, SLANetwork, ViewsDL)
from focusnet_fastai.methods.wrap import FeatureNetwork, WrappedLearner, WrapTerms
from focusnet_fastai.models import half_mobilenet_v2, lenet5, small_resnet18, small_resnet34
from focusnet_fastai.terms import LossTerms, TermColumns

cases = [pytest.param(make, id=name) for name, make in method_cases()]
every = pytest.mark.parametrize('make', cases)

z = torch.tensor([[2., .5, -1., .1]], dtype=torch.float64)
zt = torch.tensor([[1., 1.5, -.5, .2]], dtype=torch.float64)
t = torch.tensor([0])


def bn_net(n_out=10):
    return nn.Sequential(nn.Conv2d(1, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, n_out))


@pytest.fixture(scope='module')
def data(): return small()


def method_of(learn): return learn._grab_cbs(LossTerms)[0]


# --- golden values ----------------------------------------------------------------------------------------------------

def total(cb, **attrs):
    for k, v in attrs.items(): setattr(cb, k, v)
    terms = cb.terms(z, t)
    return sum(w*terms[k] for k, w in cb.weights.items()).item()


@pytest.mark.parametrize('cb,want', [
    (CrossEntropy(), .352406), (LabelSmoothing(), .512406), (LabelSmoothing(others=True), .565739), (LabelSmoothing(0.), .352406),
    (Focal(), .031086), (Focal(0.), .352406), (ConfidencePenalty(), .263159), (ConfidencePenalty(0.), .352406),
    (ConfidencePenalty(threshold=.5), .352406-.05), (TfKDReg(), .9*.352406+.1*.546368), (TfKDReg(.95, multiplier=.01), .05*.352406+.95*.01*.546368)])
def test_golden_without_a_teacher(cb, want): assert total(cb) == pytest.approx(want, abs=1e-6)


@pytest.mark.parametrize('T,kl', [(1, .394535), (3, .326977), (4, .314056), (6, .300373), (20, .280184)])
def test_golden_distillation(T, kl):
    "The terms have six known decimals; the sums of them, whose weights enlarge the rounding, are checked against the terms"
    kd, ce = softened_kl(zt, z, T).item(), cross_entropies(z, t).item()
    assert kd == pytest.approx(kl, abs=6e-7) and ce == pytest.approx(.352406, abs=6e-7)
    for alpha in (.9, 1.):
        assert total(KD(nn.Identity(), alpha, T), baseline_logits=zt) == pytest.approx((1-alpha)*ce + alpha*kd, abs=1e-12)
    assert total(KD(nn.Identity(), 1., T, cls_weight=1.), baseline_logits=zt) == pytest.approx(ce + kd, abs=1e-12)
    assert total(TfKD(nn.Identity(), T=T), baseline_logits=zt) == pytest.approx(.05*ce + .95*.5*kd, abs=1e-12)
    assert total(CSKD(3., T), partner_logits=zt) == pytest.approx(ce + 3*kd, abs=1e-12)


def test_default_weights():
    assert KD(nn.Identity()).weights == dict(cls=pytest.approx(.1), kd=.9) and KD(nn.Identity()).T == 4
    assert TfKD(nn.Identity()).alpha*TfKD(nn.Identity()).multiplier*36 == pytest.approx(17.1)
    assert CSKD().weights == dict(cls=1., kd=1.) and CSKD().T == 4
    assert DDGSD().weights == dict(cls_a=1., cls_b=1., kl=1., mmd=5e-4) and DDGSD().T == 3
    assert SLA().weights == dict(joint=1., cls=1., kd=1.) and SLA().T == 1


def test_kl_is_batchmean_of_pytorch():
    a, b = torch.randn(5, 7), torch.randn(5, 7)
    want = 16*F.kl_div((b/4).log_softmax(1), (a/4).softmax(1), reduction='batchmean')
    assert softened_kl(a, b, 4).mean().item() == pytest.approx(want.item(), rel=1e-5)


def test_virtual_teacher():
    u = virtual_teacher(t, 4)[0].tolist()
    assert u == pytest.approx([.259364, .246879, .246879, .246879], abs=1e-6)
    for T, true, rest in ((20, .010502, .009995), (40, .010248, None)):
        u = virtual_teacher(torch.tensor([3]), 100, T)[0]
        assert u[3].item() == pytest.approx(true, abs=1e-6) and u.sum().item() == pytest.approx(1, abs=1e-5)
        if rest: assert u[0].item() == pytest.approx(rest, abs=1e-6)
    soft = virtual_teacher(torch.tensor([[.3, .7]]), 2)
    assert torch.allclose(soft, .3*virtual_teacher(torch.tensor([0]), 2) + .7*virtual_teacher(torch.tensor([1]), 2))


def test_ddgsd_by_hand():
    fa, fb = torch.tensor([[1., 0.], [3., 2.]]), torch.tensor([[0., 1.], [0., 3.]])
    za, zb = torch.cat([z, zt]), torch.cat([zt, 2*z])
    y = torch.tensor([0, 2])
    for t_squared in (False, True):
        cb = DDGSD(t_squared=t_squared)
        cb.all_logits, cb.outputs = torch.cat([za, zb]), (None, torch.cat([fa, fb]))
        got = cb.terms(za, y)
        kl = lambda p, q: (p.softmax(1)*(p.log_softmax(1) - q.log_softmax(1))).sum(1)
        want = (kl(za/3, zb/3) + kl(zb/3, za/3))*(9 if t_squared else 1)
        assert torch.allclose(got['kl'], want, atol=1e-6)
        assert got['mmd'].item() == pytest.approx(5)  # means (2,1) and (0,2)
        assert torch.allclose(got['cls_a'], F.cross_entropy(za, y, reduction='none'))
        assert torch.allclose(got['cls_b'], F.cross_entropy(zb, y, reduction='none'))


def test_sla_by_hand():
    torch.manual_seed(0)
    B, N, y = 3, 5, torch.tensor([0, 4, 2])
    joint, pred = torch.randn(4*B, 4*N), torch.randn(B, N)
    cb = SLA()
    cb.outputs = (None, joint)
    got = cb.terms(pred, y)
    ce = [F.cross_entropy(joint[k*B+b][None], torch.tensor([4*y[b].item()+k])).item() for k in range(4) for b in range(B)]
    assert got['joint'].tolist() == pytest.approx(ce, abs=1e-5)
    agg = torch.stack([torch.stack([sum(joint[k*B+b, 4*c+k] for k in range(4))/4 for c in range(N)]) for b in range(B)])
    assert torch.allclose(aggregated_logits(joint), agg, atol=1e-6)
    assert torch.allclose(got['kd'], F.kl_div(pred.log_softmax(1), agg.softmax(1), reduction='none').sum(1), atol=1e-5)
    assert torch.allclose(got['cls'], F.cross_entropy(pred, y, reduction='none'))
    cb = SLA(single=False)
    cb.outputs = (None, joint)
    assert set(cb.terms(pred, y)) == {'joint'}


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


@pytest.mark.parametrize('make,words', [
    (lambda: LabelSmoothing(1.5), '`eps`'), (lambda: Focal(-1), '`gamma`'), (lambda: KD(nn.Identity(), 1.2), '`alpha`'),
    (lambda: KD(nn.Identity(), T=0), '`T`'), (lambda: TfKDReg(T=0), '`T`'), (lambda: CSKD(-1), '`lam`'), (lambda: DDGSD(mu=-1), '`mu`'),
    (lambda: SLA(T=0), '`T`'), (lambda: ConfidencePenalty(math.nan), '`beta`')])
def test_bad_numbers_are_named(make, words):
    with pytest.raises(ValueError, match=words): make()


# --- gradients that must be zero ------------------------------------------------------------------------------------------

def test_no_gradient_to_a_teacher():
    teacher, student = zt.clone().requires_grad_(), z.clone().requires_grad_()
    softened_kl(teacher, student).sum().backward()
    assert teacher.grad is None
    assert torch.allclose(student.grad, 4*((z/4).softmax(1) - (zt/4).softmax(1)))


def test_cskd_partner_has_no_gradient(data):
    learn2 = CSKD.wrap(make_learner(data))
    seen = []
    def look(l):
        m = l.cskd
        seen.append((m.partner_logits.requires_grad, l.pred.shape, m.partner_logits.shape, l.y.shape, l.model.training))
    with quiet(learn2): learn2.fit(1, 1e-3, cbs=InBatch(look))
    assert set(seen) == {(False, (32, 10), (32, 10), (32,), True)}


def test_ddgsd_views_are_constants_for_each_other():
    za, zb = z.clone().requires_grad_(), zt.clone().requires_grad_()
    cb = DDGSD()
    cb.all_logits, cb.outputs = torch.cat([za, zb]), (None, torch.ones(2, 3))
    cb.terms(za, t)['kl'].sum().backward()
    want = [((a/3).softmax(1) - (b/3).softmax(1))/3 for a, b in ((z, zt), (zt, z))]
    assert torch.allclose(za.grad, want[0]) and torch.allclose(zb.grad, want[1])


def test_sla_distillation_does_not_train_the_joint_head():
    torch.manual_seed(0)
    net = SLANetwork(bn_net(), 10).train()
    x, y = torch.randn(4, 1, 16, 16), torch.tensor([1, 2, 3, 4])
    cb = SLA()
    def grads(term):
        net.zero_grad(set_to_none=True)
        cb.outputs = net(torch.cat([x.rot90(k, (2, 3)) for k in range(4)]))
        cb.terms(cb.outputs[0][:4], y)[term].mean().backward()
        return {n: p.grad is not None and bool(p.grad.any()) for n, p in net.named_parameters()}
    g = {k: grads(k) for k in ('joint', 'cls', 'kd')}
    for k in ('cls', 'kd'): assert not g[k]['joint.weight'] and not g[k]['joint.bias'] and g[k]['net.5.weight'] and g[k]['net.0.weight']
    assert g['joint']['joint.weight'] and g['joint']['net.0.weight'] and not g['joint']['net.5.weight']


def test_sla_single_head_sees_upright_images_only(data):
    "Rotated images change neither its prediction nor its labels"
    learn2 = SLA.wrap(make_learner(data))
    seen = []
    def look(l):
        x, B = l.x, 32
        with torch.no_grad(): want = l.model.net(x[:B])
        seen.append(torch.allclose(want, l.pred, atol=1e-5) and l.pred.shape == (B, 10) and l.y.shape == (B,) and len(x) == 4*B)
    with quiet(learn2): learn2.fit(1, 0., cbs=InBatch(look))
    assert len(seen) == 4 and all(seen)


# --- loaders --------------------------------------------------------------------------------------------------------------

def digit_files(path, n=48):
    from sklearn.datasets import load_digits
    d = load_digits()
    for i in range(n):
        (path/str(d.target[i])).mkdir(exist_ok=True)
        Image.fromarray((d.images[i]*15).astype('uint8')).resize((16, 16), Image.NEAREST).save(path/str(d.target[i])/f'{i}.png')
    return path


@pytest.fixture(scope='module')
def files(tmp_path_factory): return digit_files(tmp_path_factory.mktemp('digits'))


def file_dls(files, **kw):
    block = DataBlock(blocks=(ImageBlock(PILImageBW), CategoryBlock), get_items=lambda p: sorted(get_image_files(p)), get_y=parent_label,
                      splitter=RandomSplitter(.25, seed=0))
    return block.dataloaders(files, bs=8, **kw)


def seeded(dl, seed=0):
    import random
    dl.rng = random.Random(seed)
    return dl


def test_partners_of_an_epoch(data):
    "The first halves are a permutation of the epoch, the labels of both halves agree, and the length is unchanged"
    dl = PartnersDL(data.train)
    dl.drop_last = False
    for _ in range(2):
        pairs = dl.get_idxs()
        assert sorted(i for i, _ in pairs) == list(range(128))
        labels = class_labels(data.train)
        assert all(labels[i] == labels[j] for i, j in pairs) and any(i != j for i, j in pairs)
    assert len(dl) == len(data.train)
    for x, y in dl: assert len(x) == 64 and torch.equal(y[:32], y[32:])


def test_first_half_is_the_plain_epoch(data):
    plain_dl, pair_dl = seeded(data.train.new()), PartnersDL(seeded(data.train.new()))
    for (x, y), (x2, y2) in zip(plain_dl, pair_dl): assert torch.equal(x, x2[:len(x)]) and torch.equal(y, y2[:len(y)])


def test_incomplete_batches():
    dls = small(n_train=100, bs=32, drop_last=False)
    for cls, n in ((PartnersDL, 2), (ViewsDL, 2), (RotationsDL, 4)):
        dl = cls(dls.train)
        assert [len(y) for _, y in dl] == [n*b for b in (32, 32, 32, 4)] and len(dl) == 4


@pytest.mark.parametrize('cls', [PartnersDL, ViewsDL, RotationsDL])
def test_seeds_and_workers(files, cls):
    "The same seed gives the same groups, with and without workers; another seed others"
    runs = []
    for workers, seed in ((0, 0), (2, 0), (0, 1)):
        dl = seeded(cls(file_dls(files, num_workers=workers).train), seed)
        runs.append([(x.cpu(), y.cpu()) for x, y in dl])
    eq = lambda a, b: all(torch.equal(p[0], q[0]) and torch.equal(p[1], q[1]) for p, q in zip(a, b))
    assert len(runs[0]) == len(runs[1]) == 4 and eq(runs[0], runs[1]) and not eq(runs[0], runs[2])
    for x, y in runs[1]: assert all(torch.equal(y[:8], o) for o in y.split(8))


def test_the_random_state_is_the_plain_loaders(data):
    dl = PartnersDL(data.train)
    old = dl.rng.getstate()
    a = list(dl.get_idxs())
    dl.rng.setstate(old)
    assert list(dl.get_idxs()) == a and dl.rng is data.train.rng


def test_labels_of_files_without_opening_them(files):
    dls = file_dls(files, num_workers=0)
    labels = class_labels(dls.train)
    for f in files.rglob('*.png'): f.rename(f.with_suffix('.gone'))
    try: assert class_labels(dls.train) == labels and len(labels) == 36
    finally:
        for f in files.rglob('*.gone'): f.rename(f.with_suffix('.png'))
    assert labels == [int(y) for _, y in dls.train_ds]


def test_views_differ():
    from fastai.vision.all import Rotate
    d = small(n_train=64)
    d.train.after_batch.add(Rotate(30, p=1.))
    x, y = ViewsDL(d.train).one_batch()
    a, b = x.chunk(2)
    assert torch.equal(y[:32], y[32:]) and (a-b).flatten(1).abs().amax(1).gt(1e-3).all()
    assert not any(len(o[0]) == 64 for o in d.valid)


def test_joint_labels_turn_by_turn(data):
    dl = seeded(RotationsDL(data.train))
    x, y = dl.one_batch()
    joint = joint_labels(y[:32])
    for k in range(4):
        assert torch.equal(x[32*k:32*k+32], x[:32].rot90(k, (2, 3)))
        assert torch.equal(joint[32*k:32*k+32], 4*y[:32] + k)


def test_not_square():
    d = small(n_train=64)
    rect = InMemoryLoaders.from_tensors((d.train_ds.x[..., :20], d.train_ds.y), (d.valid_ds.x[..., :20], d.valid_ds.y), list(d.vocab), bs=32)
    with pytest.raises(ValueError, match=r'square.*32, 20'): RotationsDL(rect.train).one_batch()


def test_skipped_images_are_noticed():
    class Skips(list):
        def __getitem__(self, i):
            if i == 5: raise SkipItemException
            return torch.zeros(1, 4, 4), torch.tensor(0)
    dl = TfmdDL(Skips(range(16)), bs=8, num_workers=0)
    with pytest.raises(ValueError, match='skipped'): list(ViewsDL(dl))


def test_refused_loaders(data):
    with pytest.raises(TypeError, match="fastai's.*DataLoader"): PartnersDL(torch.utils.data.DataLoader([1, 2]))
    with pytest.raises(ValueError, match='grouped already, by ViewsDL'): PartnersDL(ViewsDL(data.train))
    soft = TfmdDL([(torch.zeros(1), torch.tensor([.5, .5]))]*4, bs=2)
    with pytest.raises(ValueError, match='one class index'): PartnersDL(soft)


# --- wrapping and unwrapping ------------------------------------------------------------------------------------------------

def test_parameter_counts():
    net = small_resnet18(200)
    assert n_params(net) == 11_271_432
    assert n_params(SLANetwork(net, 200)) == 11_681_832 and n_params(SLANetwork(net, 200, single=False)) == 11_579_232
    assert n_params(FeatureNetwork(net, 200)) == n_params(net)


@pytest.mark.parametrize('arch', [small_resnet18, small_resnet34, half_mobilenet_v2, partial(half_mobilenet_v2, small=True),
                                  lambda n: resnet18(num_classes=n)])
def test_networks(arch):
    net = SLANetwork(arch(7), 7)
    x = torch.randn(2, 3, 32, 32)
    z, joint = net.train()(x)
    assert z.shape == (2, 7) and joint.shape == (2, 28)
    net.eval()
    assert torch.equal(net(x), net.net.eval()(x))


def test_joint_only_shares_its_upright_part():
    net = SLANetwork(bn_net(), 10, single=False).train()
    z, joint = net(torch.randn(5, 1, 16, 16))
    assert joint.shape == (5, 40) and torch.equal(joint[:, ::4], z)


def test_other_outputs_are_refused():
    class Scaled(nn.Module):
        def __init__(self): super().__init__(); self.net = bn_net()
        def forward(self, x): return 2*self.net(x)
    with pytest.raises(ValueError, match="Scaled is not that of its Linear layer 'net.5'"): FeatureNetwork(Scaled(), 10).train()(torch.randn(2, 1, 16, 16))
    with pytest.raises(ValueError, match='no Linear layer with 9 outputs'): FeatureNetwork(bn_net(), 9)


@pytest.mark.parametrize('cls', [CSKD, DDGSD, SLA])
def test_wrap_is_one_call_each_way(data, cls):
    learn = make_learner(data, opt_func=SGD, wd=.01)
    before, loader = state(learn.model), learn.dls.train
    learn2 = cls.wrap(learn)
    assert isinstance(learn2, WrappedLearner) and learn2.opt_func is SGD and learn2.wd == .01 and learn2.loss_func is learn.loss_func
    with quiet(learn2): learn2.fit(1, .01)
    got = learn2.unwrap()
    assert got is learn and type(got) is Learner and learn.dls.train is loader and not learn._grab_cbs((LossTerms, TermColumns))
    assert set(state(learn.model)) == set(before) and not same(state(learn.model), before)
    assert learn.validate() == learn2.validate()
    with quiet(learn): learn.fit(1, .01)
    assert list(learn.recorder.metric_names)[-2:] == ['accuracy', 'time']
    with quiet(learn2): learn2.fit(1, .01)


def test_extra_heads_are_trained_and_saved(data, tmp_path):
    learn2 = SLA.wrap(make_learner(data, path=tmp_path))
    head = learn2.model.joint.weight.clone()
    with quiet(learn2): learn2.fit(1, .01)
    assert not torch.equal(head, learn2.model.joint.weight)
    assert {id(p) for p in learn2.opt.all_params()[:].itemgot(0)} == {id(p) for p in learn2.model.parameters()}
    learn2.save('ckpt')
    again = SLA.wrap(make_learner(data, seed=5, path=tmp_path))
    again.create_opt()
    again.load('ckpt')
    assert same(state(again.model), state(learn2.model))
    for (_, _, a, _), (_, _, b, _) in zip(again.opt.all_params(), learn2.opt.all_params()):
        assert all(torch.equal(a[k], b[k]) for k in ('grad_avg', 'sqr_avg'))


def test_frozen_body(data):
    learn = vision_learner(data, resnet18, pretrained=False, n_in=1, metrics=accuracy)
    learn.freeze()
    learn2 = SLA.wrap(learn)
    assert len(learn2.opt.param_lists) == len(learn.opt.param_lists) and learn2.opt.frozen_idx == learn.opt.frozen_idx > 0
    assert any(p is learn2.model.joint.weight for p in learn2.opt.param_lists[-1])
    body = [p.requires_grad for n, p in learn.model[0].named_parameters() if 'bn' not in n and 'downsample.1' not in n and '.1.' not in n]
    assert not all(body) and learn2.model.joint.weight.requires_grad


def test_wrong_use_is_refused(data, base):
    learn = make_learner(data)
    for cls in (CSKD, DDGSD, SLA):
        with pytest.raises(ValueError, match=rf'learn2 = {cls.__name__}.wrap\(learn\)'), quiet(learn): learn.fit(1, cbs=cls())
    learn2 = CSKD.wrap(learn)
    with pytest.raises(ValueError, match='wrapped already, by CSKD'): SLA.wrap(learn2)
    with pytest.raises(ValueError, match='has the method KD already'): SLA.wrap(make_learner(data, cbs=KD(base)))
    with pytest.raises(ValueError, match='opt_func'): CSKD.wrap(make_learner(data, opt_func=OptimWrapper(opt=torch.optim.SGD(learn.model.parameters(), .1))))
    learn2.dls = data
    with pytest.raises(ValueError, match='needs a PartnersDL for training'), quiet(learn2): learn2.fit(1)


def test_training_images_are_validated_as_they_are(data):
    learn = make_learner(data)
    learn2 = SLA.wrap(learn)
    assert learn2.validate(0) == learn.validate(0)
    assert learn2.get_preds(0)[0].shape == (128, 10)


def test_cskd_against_a_loop(data):
    "Same batches, same weights, and two updates of the batch statistics a step"
    learn = make_learner(data, model=bn_net(), opt_func=partial(OptimWrapper, opt=torch.optim.SGD))
    net, batches = copy.deepcopy(learn.model), []
    learn2 = CSKD.wrap(learn, lam=3.)
    look = lambda l: batches.append((l.x.clone(), l.cskd.partner[0].clone(), l.y.clone()))
    with quiet(learn2): learn2.fit(1, .05, cbs=InBatch(look))
    opt = torch.optim.SGD(net.parameters(), .05)
    net.train()
    for x, x2, y in batches:
        z = net(x)
        with torch.no_grad(): z2 = net(x2)
        (F.cross_entropy(z, y) + 3*16*F.kl_div((z/4).log_softmax(1), (z2/4).softmax(1), reduction='batchmean')).backward()
        opt.step(); opt.zero_grad()
    assert len(batches) == 4 and net[1].num_batches_tracked == learn.model[1].num_batches_tracked == 8
    for a, b in zip(net.state_dict().values(), learn.model.state_dict().values()): assert torch.allclose(a, b, atol=1e-6)


def test_ddgsd_and_sla_forward_once(data):
    for cls in (DDGSD, SLA):
        learn = make_learner(data, model=bn_net())
        learn2 = cls.wrap(learn)
        with quiet(learn2): learn2.fit(1, .01)
        assert learn.model[1].num_batches_tracked == 4


# --- the manners of all methods ------------------------------------------------------------------------------------------------

@every
def test_fit_and_columns(data, base, make):
    learn = make(make_learner(data), base)
    before, cb = state(learn.model), method_of(learn)
    with quiet(learn): learn.fit(2, 3e-3)
    names = list(learn.recorder.metric_names)
    assert names == ['epoch', 'train_loss', 'valid_loss', 'accuracy', *cb.weights, 'time']
    row = dict(zip(names[1:-1], learn.recorder.values[-1]))
    assert sum(w*row[k] for k, w in cb.weights.items()) == pytest.approx(row['train_loss'], abs=2e-5)
    assert all(math.isfinite(v) for v in row.values())
    after = state(learn.model)
    moved = {k for k, p in learn.model.named_parameters() if not torch.equal(before[k], after[k])}
    assert moved == {k for k, _ in learn.model.named_parameters()}


@every
@pytest.mark.parametrize('event', ['before_batch', 'after_loss'])
def test_ctrl_c(data, base, make, event, tmp_path):
    learn = make(make_learner(data, path=tmp_path), base)
    loss_func, n_cbs = learn.loss_func, len(learn.cbs)
    with pytest.raises(KeyboardInterrupt), quiet(learn): learn.fit(1, 1e-3, cbs=CtrlC(event))
    assert learn.loss_func is loss_func and len(learn.cbs) == n_cbs
    learn.predict(data.valid_ds[0][0])
    with quiet(learn): learn.fit(1, 1e-3)
    done = plain(learn)
    done.export(tmp_path/'a.pkl')
    assert len(done.validate()) == 2


@every
def test_valid_loss_is_plain(data, base, make):
    learn = make(make_learner(data), base)
    with quiet(learn): learn.fit(1, 3e-3)
    row = learn.recorder.values[-1]  # `get_preds` and `validate` start the recorder's values anew
    z, y = learn.get_preds(act=noop)
    assert z.shape == (64, 10)
    assert row[1] == pytest.approx(F.cross_entropy(z, y).item(), abs=1e-5)
    assert list(learn.validate()) == pytest.approx(list(row[1:3]), abs=1e-6)


class FixedNorm(Callback):
    "Batch norm that does not depend on the batch"
    order = 5
    def before_train(self):
        for m in self.model.modules():
            if isinstance(m, nn.modules.batchnorm._BatchNorm): m.eval()


@every
def test_gradient_accumulation(base, make):
    "Two half batches accumulated are one whole batch: also for the partners, which do not depend on the batch size. Batch norm uses its running statistics"
    if (reason := getattr(make, 'of_a_batch', None)): pytest.skip(reason)
    nets = []
    for bs, cbs in ((32, []), (16, [GradientAccumulation(32)])):
        learn = make(make_learner(small(n_train=64, bs=bs, shuffle=False), opt_func=SGD), base)
        with quiet(learn): learn.fit(1, .02, cbs=[*cbs, FixedNorm()])
        nets.append(learn.model)
    start = make(make_learner(small(n_train=64)), base).model
    for p, q in zip(nets[0].parameters(), nets[1].parameters()): assert torch.allclose(p, q, atol=1e-5)
    assert not torch.allclose(next(plain_net(nets[0]).parameters()), next(plain_net(start).parameters()), atol=1e-5)


def plain_net(model): return getattr(model, 'net', model)


@every
def test_autocast(data, base, make):
    learn, seen = make(make_learner(data), base), []
    conv = [m for m in learn.model.modules() if isinstance(m, nn.Conv2d)][0]
    hook = conv.register_forward_hook(lambda m, i, o: seen.append(o.dtype) if m.training else None)
    terms = []
    def look(l):
        cb = method_of(l)
        assert not cb.baseline or cb.baseline_logits.dtype == torch.float32
        terms.append((l.loss_grad.dtype, cb.term_values.dtype))
    with quiet(learn): learn.fit(1, 1e-3, cbs=[CpuBf16('bf16'), InBatch(look)])
    hook.remove()
    assert set(seen) == {torch.bfloat16} and set(terms) == {(torch.float32, torch.float32)} and not torch.is_autocast_enabled('cpu')
    assert math.isfinite(learn.recorder.values[0][0])


@every
def test_lr_find(data, base, make, tmp_path):
    learn = make(make_learner(data, path=tmp_path), base)
    before = state(learn.model)
    with learn.no_bar(): res = learn.lr_find(show_plot=False, num_it=20)
    assert 1e-7 < res.valley < 10 and len(learn.recorder.lrs) > 10 and min(learn.recorder.losses) >= 0
    assert same(state(learn.model), before)


@every
def test_export_and_predict(data, base, make, tmp_path):
    learn = make(make_learner(data, path=tmp_path), base)
    with quiet(learn): learn.fit(1, 3e-3)
    learn.export(tmp_path/'m.pkl')
    again = load_learner(tmp_path/'m.pkl')
    assert type(again) is Learner and n_params(again.model) == n_params(getattr(make, 'net', lambda: lenet5(10))())
    x = data.valid_ds[3][0]
    a, b = learn.predict(x), again.predict(x)
    assert a[0] == b[0] and torch.allclose(a[2], b[2], atol=1e-6)
    assert (tmp_path/'m.pkl').stat().st_size < 4*n_params(again.model) + 60_000


@every
@pytest.mark.parametrize('mix', [MixUp, CutMix])
def test_mixed_images(data, base, make, mix):
    "Trains, or refuses with a reason before the first step"
    learn = make(make_learner(data), base)
    cb, before = method_of(learn), state(learn.model)
    reason = getattr(cb, 'no_mix', None)
    if reason is None:
        with quiet(learn): learn.fit(1, 1e-3, cbs=mix())
        assert math.isfinite(learn.recorder.values[0][0])
    else:
        with pytest.raises(ValueError, match=f'does not work with {mix.__name__}: .*mix'), quiet(learn): learn.fit(1, 1e-3, cbs=mix())
        assert same(state(learn.model), before) and isinstance(learn.loss_func, CrossEntropyLossFlat)
        with quiet(learn): learn.fit(1, 1e-3)


def test_mixup_is_the_blend(data, base):
    "Label smoothing and KD, by hand"
    for make, want in ((lambda: LabelSmoothing(), lambda z, y, zb: F.cross_entropy(z, y, label_smoothing=.1, reduction='none')),
                       (lambda: KD(base), lambda z, y, zb: .1*F.cross_entropy(z, y, reduction='none') + .9*softened_kl(zb, z))):
        learn, seen, handler = make_learner(data), [], MixUp()
        def look(l):
            zb = method_of(l).baseline_logits
            a, b = [want(l.pred.detach(), y, zb) for y in (l.y, handler.yb1[0])]
            seen.append((l.loss.item(), (handler.lam*a + (1-handler.lam)*b).mean().item()))
        with quiet(learn): learn.fit(1, 1e-3, cbs=[handler, make(), InBatch(look)])
        assert len(seen) == 4 and all(a == pytest.approx(b, abs=1e-5) for a, b in seen)


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


def test_baseline_stays(data, base):
    for cb in (KD(base), TfKD(base)):
        learn = make_learner(data)
        with quiet(learn): learn.fit(1, 1e-3, cbs=cb)  # the fixture `base` compares at the end
    with pytest.raises(ValueError, match='own baseline'), quiet(learn): learn.fit(1, cbs=KD(learn))


# --- several processes --------------------------------------------------------------------------------------------------------

@pytest.mark.slow
def test_two_processes(tmp_path):
    "Groups are split between the processes, and the weights stay equal"
    assert in_two_processes(tmp_path, '''
        from focusnet_fastai.methods.views import CSKD, DDGSD, SLA
        class Look(Callback):
            run_valid, order = False, 1
            def after_loss(self):
                assert isinstance(self.learn.model, DDP) and self.pred.shape == (16, 10) and self.y.shape == (16,)
                self.learn.seen.append(self.learn.method.all_logits.shape[0] if self.learn.method.blocks>1 else len(self.learn.method.partner[0]))
        for cls in (CSKD, DDGSD, SLA):
            set_seed(0)
            dls = digits_dls(n_train=128, bs=16)
            dls.train.rng = random.Random(int(os.environ['RANK']))   # the first process decides
            net = nn.Sequential(nn.Conv2d(1, 4, 5, 2), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 10))
            learn2 = cls.wrap(Learner(dls, net))
            learn2.seen = []
            with on_all_devices(learn2), learn2.no_bar(), learn2.no_logging(): learn2.fit(1, .01, cbs=Look())
            learn2.unwrap()
            assert same_in_both(learn2.model), cls
            assert learn2.seen == [16*max(learn2.method.blocks, 1)]*4, learn2.seen
            assert type(learn2.model).__name__ != 'DistributedDataParallel'
            if not rank_distrib(): print('OK', cls.__name__, len(learn2.seen))
    ''') == ['CSKD 4', 'DDGSD 4', 'SLA 4']
