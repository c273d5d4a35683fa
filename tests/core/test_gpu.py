"On a GPU: the same numbers as on the processor, half precision, nothing left behind, and files that load where there is none."
import copy, gc, os, subprocess, sys
import numpy as np, pytest, torch
from fastai.vision.all import SGD

from helpers.learners import InBatch, make_learner, quiet, small
from helpers.methods import tiny_resnet
from focusnet_fastai.compare import Comparison # noqa: F401, `Learner.compare`
from focusnet_fastai.diagnose import Diagnosis # noqa: F401, `Learner.diagnose`
from focusnet_fastai.focusnet import FocusNetCallback
from focusnet_fastai.loss import focus_picking_loss
from focusnet_fastai.methods.registry import apply_method, methods, needs_baseline
from focusnet_fastai.precision import HalfPrecision # noqa: F401, `Learner.to_precision`
from focusnet_fastai.probabilities import probability_quality
from focusnet_fastai.reference import Baseline
from focusnet_fastai.remembered import RememberedBaseline

device = 'cuda'
pytestmark = [pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU'), pytest.mark.usefixtures('card')]
devices = lambda o: {t.device.type for t in o}


@pytest.fixture(scope='module')
def data(card): return small(n_train=256, bs=64, device=device)


@pytest.fixture(scope='module')
def teacher(data):
    learn = make_learner(data)
    with quiet(learn): learn.fit_one_cycle(4, 3e-3)
    return learn


def test_the_loss_is_that_of_the_processor():
    g = torch.Generator().manual_seed(0)
    z, z_base, y = 3*torch.randn(64, 10, generator=g), 3*torch.randn(64, 10, generator=g), torch.randint(10, (64,), generator=g)
    for rule in ('positive', 'released'):
        want = focus_picking_loss(z, z_base, y, rule=rule)
        got = focus_picking_loss(*(o.to(device) for o in (z, z_base, y)), rule=rule)
        torch.testing.assert_close(got.cpu(), want, rtol=1e-5, atol=1e-6)


def test_quality_of_probabilities():
    "Wherever they are"
    g = torch.Generator().manual_seed(0)
    z, y = torch.randn(200, 10, generator=g), torch.randint(10, (200,), generator=g)
    z[range(200), y] += 2
    assert probability_quality(z.to(device), y.to(device)) == pytest.approx(probability_quality(z, y), rel=1e-4)


def first_losses(data, teacher, on, precision=None, n=3):
    "The losses of the first steps, in the order of the data"
    dls = small(n_train=256, bs=64, shuffle=False, device=on)
    base = copy.deepcopy(teacher.model).to(on)
    learn, seen = make_learner(dls, cbs=FocusNetCallback(base), opt_func=SGD, lr=.01), []
    if precision: learn.to_precision(precision)
    with quiet(learn): learn.fit(1, cbs=InBatch(lambda l: seen.append(l.loss_grad.item())))
    assert devices(learn.model.parameters()) == {on}
    return torch.tensor(seen[:n])


@pytest.mark.parametrize('precision, rtol', [(None, 1e-3), ('bf16', .05), ('fp16', .01)])
def test_a_training_starts_as_on_the_processor(data, teacher, precision, rtol):
    "Float32 to a thousandth (convolutions in TF32), half precision to what it rounds"
    torch.testing.assert_close(first_losses(data, teacher, device, precision), first_losses(data, teacher, 'cpu'), rtol=rtol, atol=rtol)


@pytest.mark.parametrize('precision', [None, 'bf16', 'fp16'])
@pytest.mark.parametrize('name', methods)
def test_every_method_trains(data, teacher, name, precision):
    f = methods[name]
    learn = make_learner(data, model=tiny_resnet(), opt_func=SGD, lr=.01).to_precision(precision)
    learn, cb = apply_method(f, learn, teacher if needs_baseline(f) else None)
    losses = []
    with quiet(learn): learn.fit(1, cbs=[o for o in (cb,) if o is not None] + [InBatch(lambda l: losses.append(l.loss_grad.detach()))])
    assert devices(losses) == {device} and torch.stack(losses).isfinite().all()
    assert devices(learn.model.parameters()) == {device} and all(p.isfinite().all() for p in learn.model.parameters())


def test_logits_are_remembered_on_the_gpu(data, teacher):
    "Or in the host's memory, where the images are; the losses are the same"
    losses = []
    for base in (Baseline(teacher), RememberedBaseline(teacher)):
        learn, seen = make_learner(data, cbs=FocusNetCallback(base), opt_func=SGD, lr=.01), []
        with quiet(learn): learn.fit(2, cbs=InBatch(lambda l: seen.append(l.loss_grad.item())))
        losses.append(seen)
    torch.testing.assert_close(*map(torch.tensor, losses), rtol=1e-3, atol=1e-3)


def test_nothing_is_left_on_the_gpu(data, teacher):
    "Three trainings, one after the other, hold no more memory than one"
    def held():
        learn = make_learner(data, cbs=FocusNetCallback(teacher))
        with quiet(learn): learn.fit(1)
        del learn
        gc.collect()
        return torch.cuda.memory_allocated()
    first = [held() for _ in range(3)]
    assert max(first[1:]) <= first[0] + 2**20, first


def test_comparison_and_diagnosis(data, teacher):
    learn = make_learner(data, cbs=FocusNetCallback(teacher))
    with quiet(learn): learn.fit_one_cycle(2, 3e-3)
    c = learn.compare(teacher)
    assert 0 <= c.df.accuracy.min() <= 1
    assert teacher.diagnose() is not None


def test_figures(data, teacher):
    "Of learners on the GPU, and from maps there"
    from focusnet_fastai.see.confusion import show_confusion
    from focusnet_fastai.see.contrast import contrast_overlay
    from focusnet_fastai.see.focus import show_focus
    from focusnet_fastai.see.parts import overlay
    learn = make_learner(data, cbs=FocusNetCallback(teacher))
    with quiet(learn): learn.fit(1)
    white, heat = np.ones((2, 2, 3)), torch.eye(2)
    for f in (overlay, contrast_overlay): assert (f(white, heat.to(device)) == f(white, heat)).all()
    assert show_focus(learn, teacher, [0, 1]).axes and show_confusion(teacher, [0, 1]).axes


def test_what_is_exported_loads_without_a_gpu(data, teacher, tmp_path):
    "In a process that sees none: the same classes"
    learn = make_learner(data, cbs=FocusNetCallback(teacher))
    with quiet(learn): learn.fit(1)
    learn.export(tmp_path/'export.pkl')
    x = data.valid_ds.x[:8].cpu()
    torch.save(x, tmp_path/'x.pt')
    with quiet(learn): want = learn.get_preds(dl=learn.dls.test_dl(x))[0].argmax(1).tolist()
    code = ("import sys, torch, warnings; warnings.filterwarnings('ignore')\nfrom fastai.vision.all import *\n"
            "l = load_learner(sys.argv[1])\ndl = l.dls.test_dl(torch.load(sys.argv[2]))\n"
            "with l.no_bar(): print(l.get_preds(dl=dl)[0].argmax(1).tolist())")
    out = subprocess.run([sys.executable, '-c', code, tmp_path/'export.pkl', tmp_path/'x.pt'], capture_output=True, text=True,
                         env=dict(os.environ, CUDA_VISIBLE_DEVICES=''))
    assert out.stdout.strip().splitlines()[-1:] == [str(want)], out.stderr
