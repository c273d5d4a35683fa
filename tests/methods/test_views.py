"CS-KD, DDGSD and SLA: values, pairs, views and rotations, what each may and may not touch."
import copy
from functools import partial
import pytest, torch, torch.nn.functional as F
from torch import nn
from fastai.vision.all import OptimWrapper, resnet18, Rotate, TfmdDL

from helpers.learners import InBatch, make_learner, n_params, quiet, small
from helpers.methods import bn_net, digit_files, file_dls
from focusnet_fastai.data.memory import InMemoryLoaders
from focusnet_fastai.loss import cross_entropies
from focusnet_fastai.methods.distil import softened_kl
from focusnet_fastai.methods.views import (aggregated_logits, class_labels, CSKD, DDGSD, joint_labels, PartnersDL, RotationsDL, SLA, SLANetwork, ViewsDL)
from focusnet_fastai.methods.wrap import FeatureNetwork
from focusnet_fastai.models import half_mobilenet_v2, small_resnet18

z = torch.tensor([[2., .5, -1., .1]], dtype=torch.float64)
zt = torch.tensor([[1., 1.5, -.5, .2]], dtype=torch.float64)
t = torch.tensor([0])


@pytest.fixture(scope='module')
def data(): return small()


def test_golden_cskd():
    "The two terms are those of KD, with the partner in the teacher's place"
    cb = CSKD(3., 4.)
    cb.partner_logits = zt
    terms = cb.terms(z, t)
    assert terms['kd'].item() == pytest.approx(.314056, abs=6e-7) and torch.equal(terms['kd'], softened_kl(zt, z, 4.))
    assert sum(w*terms[k] for k, w in cb.weights.items()).item() == pytest.approx((cross_entropies(z, t) + 3*terms['kd']).item(), abs=1e-12)


def test_default_weights():
    assert CSKD().weights == dict(cls=1., kd=1.) and CSKD().T == 4
    assert DDGSD().weights == dict(cls_a=1., cls_b=1., kl=1., mmd=5e-4) and DDGSD().T == 3
    assert SLA().weights == dict(joint=1., cls=1., kd=1.) and SLA().T == 1


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


def test_labels_of_files_without_opening_them(tmp_path):
    files = digit_files(tmp_path, 24)
    dls = file_dls(files, num_workers=0)
    labels = class_labels(dls.train)
    for f in files.rglob('*.png'): f.rename(f.with_suffix('.gone'))
    try: assert class_labels(dls.train) == labels and len(labels) == 18
    finally:
        for f in files.rglob('*.gone'): f.rename(f.with_suffix('.png'))
    assert labels == [int(y) for _, y in dls.train_ds]


def test_views_differ():
    d = small(n_train=64)
    d.train.after_batch.add(Rotate(30, p=1.))
    x, y = ViewsDL(d.train).one_batch()
    a, b = x.chunk(2)
    assert torch.equal(y[:32], y[32:]) and (a-b).flatten(1).abs().amax(1).gt(1e-3).all()
    assert not any(len(o[0]) == 64 for o in d.valid)


def test_joint_labels_turn_by_turn(data):
    dl = RotationsDL(data.train)
    x, y = dl.one_batch()
    joint = joint_labels(y[:32])
    for k in range(4):
        assert torch.equal(x[32*k:32*k+32], x[:32].rot90(k, (2, 3)))
        assert torch.equal(joint[32*k:32*k+32], 4*y[:32] + k)


def test_not_square():
    d = small(n_train=64)
    rect = InMemoryLoaders.from_tensors((d.train_ds.x[..., :20], d.train_ds.y), (d.valid_ds.x[..., :20], d.valid_ds.y), list(d.vocab), bs=32)
    with pytest.raises(ValueError, match=r'square.*32, 20'): RotationsDL(rect.train).one_batch()


def test_parameter_counts():
    net = small_resnet18(200)
    assert n_params(net) == 11_271_432
    assert n_params(SLANetwork(net, 200)) == 11_681_832 and n_params(SLANetwork(net, 200, single=False)) == 11_579_232
    assert n_params(FeatureNetwork(net, 200)) == n_params(net)


@pytest.mark.parametrize('arch', [small_resnet18, partial(half_mobilenet_v2, small=True),
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
