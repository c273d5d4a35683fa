"Every method of the registry as a run: trained, cut off after an epoch, continued, and not trained again when it has ended."
import inspect

import pandas as pd, pytest, torch
from fastai.vision.all import noop

from focusnet_fastai.lab.study import config_hash, read_result
from focusnet_fastai.lab.checkpoint import RunKeeper
from focusnet_fastai.data.digits import digits_dls
from focusnet_fastai.lab.runs import run
from focusnet_fastai.lab.config import run_config, told_as_none
from focusnet_fastai.methods.registry import find_method, methods, needs_baseline
from focusnet_fastai.models import thin_resnet
from focusnet_fastai.lab.recipes import one_cycle
from focusnet_fastai.lab.paper import results

pytestmark = pytest.mark.slow  # as a whole; `make quick` leaves it out

STAGES = ('frskd', 'frskd_f', 'focus_frskd', 'byot', 'one')  # methods that need a network with four stages


def staged(seed=0, epochs=2):
    "A recipe of one's own: a thin ResNet on 64 digits"
    return one_cycle(digits_dls(n_train=64, seed=seed, bs=32), thin_resnet(10, 1), epochs, .02, n_valid=40)


def small(seed=0, epochs=2):
    "LeNet-5 on 64 digits"
    return one_cycle(digits_dls(n_train=64, seed=seed, bs=32), 'lenet5', epochs, .02, n_valid=40)


def recipe(method): return staged if method in STAGES else small


TERMS = dict(
    baseline='', **dict.fromkeys(['focusnet', 'focusnet_released', 'focusnet_few', 'focus_class', 'focus_memory', 'focus_ema'], 'cls attention entropy'), label_smoothing='cls', focal='focal', confidence_penalty='cls entropy', kd='cls kd', de_reverse_kd='cls kd',
    tf_kd='cls kd', tf_kd_reg='cls virtual', cs_kd='cls kd', ddgsd='cls_a cls_b kl mmd', sla_sd='joint cls kd', dropmax='cent kl aux neg_entropy',
    frskd='cls teacher kd feature', frskd_f='cls teacher kd', focus_frskd='cls attention entropy teacher feature', byot='cls shallow kd feature', one='cls branches ensemble kd',
    pskd='cls', ols='cls soft', maxsup='cls top')


def ctrl_c_after(line):
    "Ends a run when it prints `line`, the checkpoint of that epoch being there"
    def log(o):
        if o.startswith(line): raise KeyboardInterrupt
    return log


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    "Holds all runs, so that the baseline is shared"
    return tmp_path_factory.mktemp('runs')


def n_baselines(root): return len(list(root.glob('*baseline-*')))
def log_of(folder): return pd.read_csv(folder/'log.csv').drop(columns='time')
def weights(folder): return torch.load(folder/'weights.pth', weights_only=True)
def without_costs(res): return {k: v for k, v in res.items() if k not in ('seconds', 'images_per_second', 'peak_memory', 'commit')}


def test_all_methods_are_here():
    "And those that need a baseline"
    assert set(TERMS) == set(methods) and {m for m in methods if needs_baseline(find_method(m))} == {'focusnet', 'focusnet_released', 'focusnet_few', 'kd', 'de_reverse_kd', 'tf_kd'}


@pytest.mark.parametrize('method', methods)
def test_run(root, method):
    "Its terms are in the log; what is kept is the plain network; cut off and continued it ends with the same bits; a finished run is left alone"
    f, root = recipe(method), root/'alone' if method == 'baseline' else root
    whole, cut = root/f'whole-{method}', root/f'cut-{method}'
    res = run(f, method, 0, whole, log=noop)
    assert (res['method'], res['epochs']) == (method, 2)
    assert list(log_of(whole)) == ['epoch', 'train_loss', 'valid_loss', 'accuracy', 'top_5', *TERMS[method].split()]
    assert all(pd.notna(v) for v in log_of(whole).to_numpy().ravel())
    if needs_baseline(find_method(method)): assert n_baselines(root) == 1 and {'baseline', 'fixed', 'broken', 'p'} <= set(res)
    else: assert 'baseline' not in res
    check_weights(f, method, whole, res)
    with pytest.raises(KeyboardInterrupt): run(f, method, 0, cut, log=ctrl_c_after('epoch 1/2'))
    assert len(RunKeeper(cut).rows) == 1 and not (cut/'result.json').exists()
    lines = []
    again = run(f, method, 0, cut, log=lines.append)
    assert 'epochs 2 to 2' in lines[0] and len(lines) == 2
    assert without_costs(again) == without_costs(res) and log_of(cut).equals(log_of(whole))
    a, b = weights(whole), weights(cut)
    assert list(a) == list(b) and all(torch.equal(a[k], b[k]) for k in a)
    before = {o: o.stat().st_mtime_ns for o in whole.glob('*.*')}
    assert run(f, method, 0, whole, log=lines.append) == read_result(whole) and len(lines) == 2
    assert before == {o: o.stat().st_mtime_ns for o in whole.glob('*.*')}


def check_weights(f, method, folder, res):
    "They fit the recipe's network, DropMax's apart, and classify as `result.json` says"
    learn, w = f().learn, weights(folder)
    if method == 'dropmax':
        net = find_method(method)().network(learn.model, 10)
        learn.model = find_method(method)().deployed(net)
    learn.model.load_state_dict(w)
    with learn.no_bar(), learn.no_logging(): loss, accuracy, _ = learn.validate()
    assert (loss, accuracy) == pytest.approx((res['last']['valid_loss'], res['last']['accuracy']), abs=1e-5)


@pytest.mark.parametrize('method', ['dropmax', 'sla_sd', 'focusnet'])
def test_a_baseline_of_another_method(tmp_path, method):
    "FocusNet against what another method has trained: its network, with DropMax's second head"
    other = run(recipe(method), method, 0, tmp_path/'alone', log=noop)
    folder = tmp_path/'runs'/f'after-{method}'
    res = run(small, 'focusnet', 0, folder, base=dict(method=method), log=noop)
    row = results(tmp_path/'runs').set_index('folder').loc[str(folder)]
    assert res['epochs'] == 2 and (row.epochs, row.total_epochs) == (2, 6 if method == 'focusnet' else 4)
    assert res['baseline']['accuracy'] == pytest.approx(other['last']['accuracy'])


@pytest.mark.parametrize('method', STAGES)
def test_network_without_stages(tmp_path, method):
    "LeNet-5 has none: said before anything is trained"
    with pytest.raises(ValueError, match='stages'): run(small, method, 0, tmp_path/'run', log=noop)
    assert not (tmp_path/'run'/'checkpoint.pth').exists()


@pytest.mark.parametrize('method', [m for m in methods if m != 'baseline'])
def test_settings_are_in_the_configuration(method):
    "With their defaults, so that another value is another run"
    cfg = run_config(recipe(method), method, 0)
    params = {k: p for k, p in inspect.signature(find_method(method)).parameters.items() if k not in ('base', 'baseline')}
    assert list(cfg['method_settings']) == [k for k, p in params.items() if p.default is not None or k in told_as_none]
    for k, v in cfg['method_settings'].items():
        if isinstance(v, float): assert config_hash(run_config(recipe(method), method, 0, **{k: v+.25})) != config_hash(cfg), k


def test_new_arguments_at_none_are_not_named():
    "So runs that were made before are found; given, they are a run of their own; those that stood there at None before still do"
    plain = run_config(small, 'focusnet', 0)
    assert plain['method_settings'] == dict(alpha=1., beta=1., rule='positive', label_smoothing=0., detach=False)
    assert run_config(small, 'focusnet', 0, top_k=None) == plain and config_hash(run_config(small, 'focusnet', 0, top_k=3)) != config_hash(plain)
    assert run_config(small, 'focusnet', 0, confidence=.9)['method_settings']['confidence'] == .9
    assert run_config(small, 'kd', 0)['method_settings']['cls_weight'] is None
    def grown(seed=0, epochs=2, warmup=None, lr=.1): pass
    assert run_config(grown, 'baseline', 0, lr=None)['recipe_settings'] == dict(seed=0, epochs=2, lr=None)
