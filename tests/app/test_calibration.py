"What is exported of photographs is calibrated, on photographs that the report does not use."
import copy
import pytest, torch, torch.nn.functional as F
from pathlib import Path
from fastai.vision.all import Learner, load_learner, noop, set_seed

from focusnet_fastai.app.photo_network import digit_photos
from focusnet_fastai.app.photo_training import PhotoTraining, calibration_split
from focusnet_fastai.app.report import report_html
from focusnet_fastai.compare import Comparison
from focusnet_fastai.data.folder import folder_dls
from focusnet_fastai.models import thin_resnet
from focusnet_fastai.reference import Baseline
from helpers.learners import quiet, same, state


@pytest.fixture(scope='module')
def pair(tmp_path_factory):
    "Two small networks, trained on photographs of three digits, and 75 photographs for validation"
    dls = folder_dls(digit_photos(tmp_path_factory.mktemp('calibration')/'photos', (3, 8, 9), n=50), size=32, num_workers=0, valid_pct=.5, bs=25)
    res = []
    for seed in (0, 1):
        set_seed(seed)
        learn = Learner(dls, thin_resnet(3))
        with quiet(learn): learn.fit_one_cycle(5, 1e-2)
        res.append(learn)
    return res


def training(pair, out, lines, given=None, **how):
    base, learn = [Learner(o.dls, copy.deepcopy(o.model)) for o in pair]
    t = PhotoTraining(base.dls, out, given, lines.append, **dict(seed=0, arch=None, size=32, epochs=5, lr=None, photos='photos', settings='paper', alpha=None, beta=None, rule=None), **how)
    t.base, t.seconds = Baseline(base), dict(Baseline=1., FocusNet=1.)
    return t, base, learn


def test_every_third_photo_of_each_class():
    files = [Path(c)/f'{i}.jpg' for i in range(40) for c in 'ab']
    shown, held = calibration_split(files)
    assert not set(shown) & set(held) and set(shown) | set(held) == set(files) and [o for o in files if o in set(held)] == held
    assert [sum(o.parent.name == c for o in held) for c in 'ab'] == [14, 13] and calibration_split(files[:56]) == (files[:56], [])


@pytest.mark.slow
def test_both_are_calibrated_and_the_report_is_about_others(pair, tmp_path):
    lines = []
    t, base, learn = training(pair, tmp_path, lines)
    zs = [o.get_preds(act=noop)[0] for o in (base, learn)]
    c = t.compared(learn)
    shown, held = calibration_split(learn.dls.valid_ds.items)
    assert len(held) == 25 and list(t.shown.dataset.items) == shown and len(c.y) == 50
    assert not lines and set(t.temperatures) == {'Baseline', 'FocusNet'}
    keep = [i for i, f in enumerate(learn.dls.valid_ds.items) if f in set(shown)]
    for z, got, name in zip(zs, (c.zb, c.z), c.names): assert torch.allclose(z[keep]/t.temperatures[name], got, atol=1e-3)
    again = load_learner(tmp_path/'baseline.pkl')
    assert same(state(again.model), state(base.model)) and not same(state(again.model), state(pair[0].model))
    t.out = tmp_path
    t.finish(learn, c)
    page = (tmp_path/'report.html').read_text(encoding='utf-8')
    assert 'on validation photos that this report does not use; temperature' in page and f"{t.temperatures['FocusNet']:.2f} (FocusNet)" in page
    assert 'Of 50 images' in page and not [f for f in held if '/'.join(f.parts[-2:]) in page]


def test_only_where_asked_for_and_possible(pair, tmp_path):
    "Switched off, a given baseline, too few photographs, a network that cannot be calibrated"
    lines = []
    t, base, learn = training(pair, tmp_path, lines, calibrate=False)
    assert len(t.compared(learn).y) == 75 and same(state(learn.model), state(pair[1].model)) and not lines and t.rows(learn)['Calibrated'] == 'no'
    t, base, learn = training(pair, tmp_path, lines, given=type('Given', (), dict(path=Path('old.pkl'))))
    t.compared(learn)
    assert set(t.temperatures) == {'FocusNet'} and same(state(base.model), state(pair[0].model)) and not (tmp_path/'baseline.pkl').exists()
    t, base, learn = training(pair, tmp_path, lines)
    learn.model = torch.nn.Sequential(learn.model, torch.nn.Softmax(1))
    t.compared(learn)
    assert lines[0].startswith('FocusNet is not calibrated: No temperature can be put into this Sequential') and set(t.temperatures) == {'Baseline'}
