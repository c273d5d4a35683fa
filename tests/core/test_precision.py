"Half precision on whatever device the data is on: what is computed in it, what is not, and what is left behind."
import pickle, random, textwrap
from copy import copy, deepcopy
import pandas as pd, pytest, torch
from fastai.vision.all import Callback, Learner, MixedPrecision, SGD, accuracy, nn, noop, set_seed
from fastai.callback.mixup import MixUp
from fastai.callback.training import GradientAccumulation, GradientClip

from helpers import fresh
from helpers.learners import CtrlC, make_learner, quiet, same, state
from focusnet_fastai.data.digits import digits_dls
from focusnet_fastai.focusnet import FocusNetCallback
from focusnet_fastai.lab.training import Training
from focusnet_fastai.lab.runs import run
from focusnet_fastai.methods.registry import apply_method, methods, needs_baseline
from focusnet_fastai.models import thin_resnet
from focusnet_fastai.precision import HalfPrecision, bf16_gain, check_precision, faster_precision, in_turns, ratio, slow_bf16

pytestmark = pytest.mark.filterwarnings('ignore:.*no better than guessing')


class Types(Callback):
    "What a batch is computed in, before the logits are made float32, and after the loss"
    order = HalfPrecision.order-1
    def before_fit(self): self.seen, self.of_loss = set(), set()
    def after_pred(self): self.seen.add((self.training, (self.learn.pred[0] if isinstance(self.learn.pred, tuple) else self.learn.pred).dtype))
    def after_loss(self): self.of_loss.add(self.learn.loss_grad.dtype)


def thin(dls, seed=0, **kw):
    set_seed(seed)
    return make_learner(dls, seed, thin_resnet(10, 1), **kw)


def test_training_validation_and_prediction(dls):
    learn = thin(dls, cbs=Types).to_precision('bf16')
    with quiet(learn):
        learn.fit(1, 1e-3)
        assert learn.types.seen == {(True, torch.bfloat16), (False, torch.bfloat16)} and learn.types.of_loss == {torch.float32}
        logged = learn.recorder.values[-1]
        assert learn.validate()[0] == pytest.approx(logged[1], abs=1e-6)
        p, y, loss = learn.get_preds(with_loss=True)
    assert learn.types.seen == {(False, torch.bfloat16)} and p.dtype == loss.dtype == torch.float32
    assert {o.dtype for o in learn.model.state_dict().values()} == {torch.float32, torch.int64}
    assert not torch.is_autocast_enabled('cpu')
    x = dls.valid_ds[0][0]
    with learn.no_bar(): assert torch.allclose(learn.predict(x)[2], p[0], atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize('name', [o for o in methods if o != 'baseline'])
def test_every_method_computes_terms_in_float32(dls, name):
    base = thin(dls, 1) if needs_baseline(methods[name]) else None
    seen = []
    class Look(Callback):
        run_valid, order = False, 1
        def after_loss(self): seen.append((self.learn.pred.dtype, self.learn.loss_grad.dtype))
    learn, cb = apply_method(methods[name], thin(dls, 2), base)
    learn.to_precision('bf16')
    with quiet(learn): learn.fit(1, 1e-3, cbs=[*([cb] if cb is not None else []), Look()])
    assert set(seen) == {(torch.float32, torch.float32)}


def test_baseline_is_inside_the_same_autocast(dls):
    base, learn, seen = thin(dls, 1), thin(dls, 2).to_precision('bf16'), set()
    class Look(Callback):
        run_valid, order = False, 1
        def after_loss(self): seen.add((self.focus_net.frozen.net(self.x).dtype, self.focus_net.baseline_logits.dtype))
    with quiet(learn): learn.fit(1, 1e-3, cbs=[FocusNetCallback(base), Look()])
    assert seen == {(torch.bfloat16, torch.float32)}


def test_float32_gives_the_old_numbers_back(dls):
    a, b = thin(dls), thin(dls).to_precision('bf16').to_precision(None)
    for o in (a, b):
        dls.train.rng = random.Random(0)
        with quiet(o): o.fit(1, 1e-2)
    assert same(state(a.model), state(b.model)) and len(a.cbs) == len(b.cbs)
    assert all(p.is_contiguous() for p in b.model.parameters())


def test_it_computes_something_else_and_close(dls):
    a, b = thin(dls), thin(dls)
    with quiet(b): half = b.to_precision('bf16').get_preds(act=noop)[0]
    with quiet(a): full = a.get_preds(act=noop)[0]
    assert not torch.equal(half, full) and torch.allclose(half, full, atol=.02), (half-full).abs().max()


def test_twice_is_once_and_fastai_finds_it(dls):
    learn = thin(dls).to_precision('bf16').to_precision('bf16')
    assert len(learn._grab_cbs(MixedPrecision)) == 1 and isinstance(learn.mixed_precision, HalfPrecision)
    assert learn.cbs.attrgot('name').count('channels_last') == 1
    learn.to_fp32()
    assert not learn._grab_cbs(MixedPrecision)


def test_memory_format(dls):
    learn = thin(dls).to_precision('bf16')
    def last(m): return any(not p.is_contiguous() for p in m.parameters() if p.ndim == 4)
    with quiet(learn): learn.fit(1)
    assert last(learn.model)
    assert not last(learn.to_precision('bf16', channels_last=False).model)
    learn.to_precision(None, channels_last=True)
    with quiet(learn): learn.fit(1)
    assert last(learn.model) and not learn._grab_cbs(MixedPrecision)


@pytest.mark.parametrize('event', ['before_batch', 'after_pred', 'after_loss'])
def test_ctrl_c_leaves_no_autocast(dls, event):
    learn = thin(dls)
    with quiet(learn), pytest.raises(KeyboardInterrupt): learn.fit(1, cbs=[HalfPrecision('bf16'), CtrlC(event)])
    assert not torch.is_autocast_enabled('cpu')
    learn.to_precision('bf16')
    with quiet(learn), pytest.raises(KeyboardInterrupt): learn.fit(1, cbs=CtrlC(event))
    with quiet(learn): learn.fit(1)
    assert not torch.is_autocast_enabled('cpu')


def test_a_validation_inside_of_a_fit(dls):
    class Inner(Callback):
        run_valid, order = False, 99
        def after_batch(self):
            if self.iter == 1: self.learn.get_preds(inner=True)
    learn = thin(dls, cbs=Types).to_precision('bf16')
    with quiet(learn): learn.fit(1, cbs=Inner())
    assert {o[1] for o in learn.types.seen} == {torch.bfloat16} and not torch.is_autocast_enabled('cpu')


def test_with_other_callbacks(dls):
    learn = thin(dls).to_precision('bf16')
    with quiet(learn): learn.fit(1, 1e-2, cbs=[MixUp(), GradientAccumulation(128), GradientClip(1.), FocusNetCallback(thin(dls, 1))])
    assert all(p.isfinite().all() for p in learn.model.parameters())


@pytest.mark.slow
def test_export_is_plain_and_float32(dls, tmp_path):
    learn = thin(dls).to_precision('bf16')
    with quiet(learn): learn.fit(1)
    learn.path = tmp_path
    learn.export('a.pkl')
    assert b'focusnet_fastai.precision' not in pickle.dumps(learn.mixed_precision) and isinstance(learn.mixed_precision, HalfPrecision)
    code = f"""
        import sys, torch; from fastai.vision.all import *
        learn = load_learner({str(tmp_path/'a.pkl')!r})
        assert 'focusnet_fastai.precision' not in sys.modules
        assert not [o for o in learn.cbs if isinstance(o, MixedPrecision)]
        print({{p.dtype for p in learn.model.parameters()}})"""
    out = fresh.python(textwrap.dedent(code))
    assert out.stdout.strip() == '{torch.float32}', out.stderr


def test_copies_and_refocus(dls):
    cb = thin(dls).to_precision('bf16').mixed_precision
    for o in (copy(cb), deepcopy(cb)): assert type(o) is HalfPrecision and o.amp_mode == cb.amp_mode and o.learn is None
    base = thin(dls).to_precision('bf16')
    with quiet(base): learn = base.refocus(1, 1e-3, cbs=Types())
    assert isinstance(learn.mixed_precision, HalfPrecision) and learn.mixed_precision is not base.mixed_precision


def test_refusals(dls):
    with pytest.raises(ValueError, match='needs a GPU'): thin(dls).to_precision('fp16')
    with pytest.raises(ValueError, match="must be 'bf16'"): thin(dls).to_precision('int8')
    learn = thin(dls, cbs=HalfPrecision('fp16'))
    with quiet(learn), pytest.raises(ValueError, match='needs a GPU'): learn.fit(1)


def test_sentence_where_it_is_slow(monkeypatch, dls):
    monkeypatch.setattr('focusnet_fastai.precision.bf16_gain', lambda device='cpu': .4)
    with pytest.warns(UserWarning, match='0.40 times as fast'): thin(dls).to_precision('bf16')
    assert faster_precision(thin_resnet(10), 32).precision is None
    monkeypatch.setattr('focusnet_fastai.precision.bf16_gain', lambda device='cpu': 2.)
    assert slow_bf16(torch.device('cpu')) is None


def test_faster_precision_touches_nothing():
    net = nn.Sequential(thin_resnet(10, 1), nn.Dropout()).eval()
    before, flags, rng = state(net), [m.training for m in net.modules()], torch.get_rng_state()
    choice = faster_precision(net, size=(32, 24), bs=4, channels=1, seconds=.2)
    assert same(before, state(net)) and flags == [m.training for m in net.modules()] and torch.equal(rng, torch.get_rng_state())
    assert choice.precision in (None, 'bf16') and choice.gain > 0 and f'{choice.gain:.1f} times' in repr(choice)
    assert all(p.grad is None for p in net.parameters()) and all(p.is_contiguous() for p in net.parameters())


def test_turns_and_ratio():
    calls = []
    a, b = in_turns([lambda: calls.append('a'), lambda: calls.append('b')], 2, torch.device('cpu'))
    assert calls == list('ababab') and len(a) == len(b) == 2
    assert ratio([2, 2, 90], [1, 1, 10]) == 2


def halved(seed=0, epochs=3):
    "A recipe in bfloat16"
    dls = digits_dls(n_train=128, bs=32, device='cpu')
    learn = Learner(dls, thin_resnet(10, 1), opt_func=SGD, lr=.05, metrics=accuracy)
    return Training(learn.to_precision('bf16'), epochs, .05)


@pytest.mark.slow
@pytest.mark.parametrize('method', ['focusnet'])
def test_resumed_bit_for_bit(tmp_path, method):
    "Broken off after the first epoch of the second training, and continued"
    run(halved, method, 0, tmp_path/'whole'/'run', log=lambda s: None)
    def stop(s):
        if 'epoch 1/3' in s and 'attention' in s: raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): run(halved, method, 0, tmp_path/'broken'/'run', log=stop)
    run(halved, method, 0, tmp_path/'broken'/'run', log=lambda s: None)
    weights = [torch.load(tmp_path/o/'run'/'weights.pth', weights_only=True) for o in ('whole', 'broken')]
    logs = [pd.read_csv(tmp_path/o/'run'/'log.csv').drop(columns='time') for o in ('whole', 'broken')]
    assert same(*weights) and logs[0].equals(logs[1])
