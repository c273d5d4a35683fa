"Baselines: frozen copies, saved weights, and whether they fit."
import copy, math, threading
from pathlib import Path
import pytest, torch
from torch import nn
from fastai.vision.all import Learner, set_seed

from helpers.learners import make_learner, quiet, same, state
from focusnet_fastai.compare import paired_logits
from focusnet_fastai.data.digits import digits_dls
from focusnet_fastai.focusnet import FocusNetCallback
from focusnet_fastai.loss import focus_picking_loss
from focusnet_fastai.models import lenet5, small_cnn
from focusnet_fastai.reference import Baseline, load_weights
from focusnet_fastai.frozen import copied_network, FrozenNetwork


# --- copies ---------------------------------------------------------------------------------------------------------------

class KeepsOutput(nn.Module):
    "Keeps what its forward pass made: as an attribute, in a list, and in a dictionary of a helper"
    def __init__(self): super().__init__(); self.net, self.seen, self.cache = lenet5(10), [], {}
    def forward(self, x):
        self.last = self.net(x)
        self.seen.append(self.last)
        self.cache['bias', x.device] = self.last.sum()
        return self.last


def old_weight_norm():
    net = lenet5(10)
    with pytest.warns(FutureWarning): torch.nn.utils.weight_norm(net[-1])
    net(torch.randn(2, 1, 32, 32))
    return net


@pytest.mark.parametrize('make', [KeepsOutput, old_weight_norm])
def test_networks_that_keep_tensors_of_a_graph(dls, make):
    "They are copied, train as a baseline, are compared, and stay as they are"
    net = make()
    net(torch.randn(2, 1, 32, 32))
    with pytest.raises(RuntimeError): copy.deepcopy(net)
    before, x = state(net), torch.randn(3, 1, 32, 32)
    with torch.no_grad(): want = net.eval()(x)
    frozen = FrozenNetwork(net)
    assert torch.allclose(frozen(x), want) and not any(p.requires_grad for p in frozen.parameters())
    learn = make_learner(dls)
    with quiet(learn): learn.fit(1, 1e-3, cbs=FocusNetCallback(net))
    paired_logits(learn, net)
    assert same(before, state(net)) and all(p.requires_grad for p in net.parameters())


def test_attributes_that_cannot_be_copied_are_shared_and_named(dls):
    net = lenet5(10)
    net[0].lock, net.source = threading.Lock(), (i for i in range(3))
    with pytest.warns(UserWarning, match=r'source, 0\.lock of Sequential') as told: new = copied_network(net)
    assert new[0].lock is net[0].lock and new.source is net.source and next(net.source) == 0
    assert not {p.data_ptr() for p in new.parameters()} & {p.data_ptr() for p in net.parameters()}


def test_a_network_that_forbids_copies_is_named():
    class Alone(nn.Module):
        def __deepcopy__(self, memo): raise TypeError('one of a kind')
    with pytest.raises(ValueError, match='Alone cannot be copied.*one of a kind'): FrozenNetwork(Alone())


# --- precision ------------------------------------------------------------------------------------------------------------

@pytest.mark.slow
@pytest.mark.parametrize('dtype,tol', [(torch.bfloat16, .05), (torch.float16, .01), (torch.float64, 1e-6)])
def test_baseline_in_another_precision(dls, base, dtype, tol):
    "It is asked in its own precision; the terms are computed in float32"
    net = copy.deepcopy(base.model).to(dtype)
    x = dls.valid.one_batch()[0]
    frozen = FrozenNetwork(net)
    assert {p.dtype for p in frozen.parameters()} == {dtype}
    assert frozen(x).dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert torch.allclose(frozen(x).float(), FrozenNetwork(base.model)(x), atol=20*tol)
    rows = []
    for b in (net, base.model):
        learn = make_learner(dls)
        with quiet(learn): learn.fit(1, 1e-3, cbs=FocusNetCallback(b))
        rows.append(list(learn.recorder.values[0]))
    assert rows[0] == pytest.approx(rows[1], abs=tol) and learn.loss is None
    c = make_learner(dls).compare(net)
    assert c.df.loc['baseline', 'accuracy'] == pytest.approx(base.validate()[1], abs=.02)


def test_learner_in_half_precision_is_compared(dls, base):
    learn = Learner(dls, copy.deepcopy(base.model).to(torch.bfloat16))
    c = learn.compare(base)
    assert c.z.dtype == c.zb.dtype == torch.float32 and torch.allclose(c.z, c.zb, atol=1.)


def test_whole_numbers_keep_their_type():
    "Token ids are no floating tensor"
    net = nn.Sequential(nn.Embedding(5, 4), nn.Flatten(), nn.Linear(8, 3)).double()
    assert FrozenNetwork(net)(torch.tensor([[1, 4]])).shape == (1, 3)


def test_output_that_is_no_tensor_is_named(dls):
    class Odd(nn.Module):
        def forward(self, x): return dict(logits=x)
    with pytest.raises(TypeError, match='Odd gives a dict'): FrozenNetwork(Odd())(torch.ones(1, 2))


# --- saved weights ---------------------------------------------------------------------------------------------------------

def test_saved_weights(tmp_path, dls, base):
    learn = make_learner(dls, path=tmp_path)
    learn.create_opt()
    files = [learn.save('with_opt'), learn.save('plain', with_opt=False), tmp_path/'state.pth']
    torch.save(learn.model.state_dict(), files[2])
    from safetensors.torch import save_file
    save_file(learn.model.state_dict(), tmp_path/'w.safetensors')
    for f in files + [tmp_path/'w.safetensors', str(files[0])]:
        for arch in (lambda: lenet5(10), lenet5(10)):
            got = Baseline(f, arch=arch).model
            assert all(torch.equal(a, b) for a, b in zip(got.state_dict().values(), learn.model.state_dict().values()))


def test_weights_never_run_code(tmp_path):
    marker = tmp_path/'ran'
    class Evil:
        def __reduce__(self): return (Path.touch, (marker,))
    torch.save({'model': Evil()}, tmp_path/'evil.pth')
    with pytest.raises(ValueError, match='evil.pth.*code'): load_weights(tmp_path/'evil.pth', lambda: lenet5(10))
    assert not marker.exists()
    torch.load(tmp_path/'evil.pth', weights_only=False)
    assert marker.exists(), 'the file was not dangerous at all'


def test_baseline_source_is_named(tmp_path):
    with pytest.raises(TypeError, match='dict'): Baseline({})
    with pytest.raises(ValueError, match='arch'): Baseline(tmp_path/'x.pth')
    with pytest.raises(FileNotFoundError): Baseline(tmp_path/'x.pth', arch=lambda: lenet5(10))


WRAPPINGS = {'as they are': lambda s: s, 'DataParallel': lambda s: {f'module.{k}': v for k, v in s.items()},
             'compiled': lambda s: {f'_orig_mod.{k}': v for k, v in s.items()},
             'a part compiled': lambda s: {k.replace('.', '._orig_mod.'): v for k, v in s.items()},
             'both': lambda s: {f'module._orig_mod.{k}': v for k, v in s.items()},
             'state_dict': lambda s: dict(state_dict=s, epoch=3), 'model': lambda s: dict(model=s, best=.5),
             'lightning': lambda s: dict(model_state_dict={f'module.{k}': v for k, v in s.items()})}


@pytest.mark.parametrize('how', WRAPPINGS)
@pytest.mark.parametrize('name', ['w.pth', 'w.PTH', 'w.bin', 'w.ckpt', 'w.pkl', 'w'])
def test_weights_as_others_write_them(tmp_path, how, name):
    net = lenet5(10)
    torch.save(WRAPPINGS[how](net.state_dict()), tmp_path/name)
    assert same(state(load_weights(tmp_path/name, lambda: lenet5(10))), state(net))


def test_a_module_of_that_name_keeps_it(tmp_path):
    "`module.` is only a prefix where the network has no such module"
    class Own(nn.Module):
        def __init__(self): super().__init__(); self.module = nn.Linear(2, 2)
    for net in (Own(), nn.DataParallel(Own())):
        torch.save(net.state_dict(), tmp_path/'w.pth')
        got = load_weights(tmp_path/'w.pth', Own)
        assert torch.equal(got.module.weight, getattr(net.module, 'module', net.module).weight)


@pytest.mark.parametrize('name', ['w.safetensors', 'w.SAFETENSORS', 'w.bin', 'w.pth'])
def test_safetensors_whatever_the_ending(tmp_path, name):
    from safetensors.torch import save_file
    net = lenet5(10)
    save_file({f'module.{k}': v for k, v in net.state_dict().items()}, tmp_path/name)
    assert same(state(load_weights(tmp_path/name, lambda: lenet5(10))), state(net))


@pytest.mark.parametrize('name', ['w.safetensors', 'w.pth'])
@pytest.mark.parametrize('how', ['empty', 'five bytes', 'half', 'no header', 'text'])
def test_damaged_weights_name_the_file(tmp_path, name, how):
    from safetensors.torch import save_file
    f, net = tmp_path/name, lenet5(10)
    if name.endswith('.pth'): torch.save(net.state_dict(), f)
    else: save_file(net.state_dict(), f)
    whole = f.read_bytes()
    f.write_bytes({'empty': b'', 'five bytes': whole[:5], 'half': whole[:len(whole)//2], 'no header': b'\xff'*8 + whole[8:], 'text': b'not weights at all'}[how])
    with pytest.raises(ValueError, match=name): load_weights(f, lambda: lenet5(10))


def test_other_weights_are_named_in_a_sentence(tmp_path):
    torch.save(lenet5(10).state_dict(), tmp_path/'w.pth')
    with pytest.raises(ValueError, match=r'w\.pth are not those of this Sequential: 11\.weight is \(10, 84\) there and \(7, 84\) here; 11\.bias'): load_weights(tmp_path/'w.pth', lenet5(7))
    with pytest.raises(ValueError, match=r'w\.pth .* missing; .*\.\.\. unknown') as e: load_weights(tmp_path/'w.pth', small_cnn(10))
    assert len(str(e.value)) < 400
    torch.save([1, 2], tmp_path/'list.pth')
    with pytest.raises(ValueError, match='list.pth are not those'): load_weights(tmp_path/'list.pth', lenet5(10))


def test_advice_for_a_path_without_architecture(tmp_path, dls):
    "The line to type, for an exported learner and for weights, by what the file is and not by its name"
    learn = make_learner(dls, path=tmp_path)
    for name in ('base.pkl', 'base.pth', 'base.model'):
        learn.export(tmp_path/name)
        with pytest.raises(ValueError, match=rf"runs code.*pass `load_learner\('{tmp_path}/{name}'\)`"): FocusNetCallback(tmp_path/name)
    for name in ('w.pth', 'w.bin'):
        torch.save(learn.model.state_dict(), tmp_path/name)
        with pytest.raises(ValueError, match=rf"pass `Baseline\('{tmp_path}/{name}', arch=\.\.\.\)`"): FocusNetCallback(str(tmp_path/name))


# --- does it fit? ----------------------------------------------------------------------------------------------------------

def test_permuted_vocab_of_a_learner(dls):
    set_seed(0)
    swapped = digits_dls(n_train=64)
    other = Learner(swapped, lenet5(10))
    b = Baseline(other)
    b.vocab = b.vocab[::-1]
    assert b.class_order(make_learner(dls)) == list(range(10))[::-1]
