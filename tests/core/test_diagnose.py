"Verdicts on planted causes, each piece of evidence against an independent count, and what is refused."
import json, math
import numpy as np, pandas as pd, pytest, torch
from fastai.vision.all import Learner, nn, set_seed
import torchvision
from scipy.stats import mannwhitneyu
from sklearn.metrics import roc_auc_score

from helpers.learners import make_learner, quiet, same, small, state
from helpers.planted import spoilt_digits
from focusnet_fastai.app.doctor import diagnose_arrays
from focusnet_fastai.compare import Comparison
from focusnet_fastai.data.memory import CropBatch
from focusnet_fastai.case import Answers, Case, Diagnosis, confusion_counts, network_answers, share_interval, told_apart, worst_pairs
from focusnet_fastai.contrast_share import contrast_share, images_of, last_map, seen_contrast
from focusnet_fastai.data.digits import digits_dls
from focusnet_fastai.models import small_cnn
from focusnet_fastai.see.cam import class_maps
from focusnet_fastai.diagnose import kept_margins
from focusnet_fastai.focus import FocusMemory
from focusnet_fastai.focusnet import FocusNetCallback
from focusnet_fastai.margins import LabelEvidence, MarginRecorder
from focusnet_fastai.self_memory import Memory
from focusnet_fastai.verdicts import two_clusters
from focusnet_fastai.learning_curve import about, images_needed

made = {}
def diagnosis(cause):
    "Made once"
    if cause not in made:
        arrays, known = spoilt_digits(cause)
        made[cause] = diagnose_arrays({k: np.asarray(v) for k, v in arrays.items()}), known
    return made[cause]


def row(d, *names): return d.df[d.df.true.isin(names) & d.df.predicted.isin(names)].iloc[0]


@pytest.mark.parametrize('cause,names,which', [('relabel', ('d3', 'd8'), ''), ('merge', ('d7', 'd10'), '')])
def test_planted_pair(cause, names, which):
    d, _ = diagnosis(cause)
    assert (row(d, *names).verdict, row(d, *names).which) == (cause, which)
    others = d.df[~(d.df.true.isin(names) & d.df.predicted.isin(names))]
    assert set(others.verdict) <= {'train', 'not clear'}


@pytest.mark.parametrize('cause,which', [('collect', 'd9'), ('split', 'd1')])
def test_planted_class(cause, which):
    d, _ = diagnosis(cause)
    found = d.df[d.df.verdict == cause]
    assert len(found) and set(found.which) == {which} and (found.p < .01).all()
    assert set(d.df[d.df.verdict != cause].verdict) <= {'train', 'not clear'}


def test_nothing_planted_nothing_found():
    d, _ = diagnosis('nothing')
    assert len(d.df) and set(d.df.verdict) <= {'train', 'not clear'}


def test_wrong_labels_come_first():
    d, known = diagnosis('relabel')
    s, n = d.suspicious, len(known.wrong)
    assert list(s.columns) == ['index', 'file', 'label', 'suggested', 'score'] and s.score.is_monotonic_decreasing
    assert len(set(s['index'][:n]) & set(known.wrong)) > .7*n
    hits = s[s['index'].isin(known.wrong)]
    assert (hits.suggested == [f'd{known.true[i]}' for i in hits['index']]).mean() > .9
    assert (s.label == [f'd{d.train.y[i]}' for i in s['index']]).all()


def test_evidence_stands_in_the_sentence():
    for cause, words in (('relabel', 'speak against their label'), ('merge', 'than by a coin'), ('collect', 'd9 has 10 training images'),
                         ('split', 'd1 is two clusters')):
        d, _ = diagnosis(cause)
        assert words in d.df[d.df.verdict == cause].why.iloc[0] and words in repr(d) and words in d._repr_html_()


def test_counts_and_pairs_by_hand():
    g = torch.Generator().manual_seed(0)
    z, y = torch.randn(200, 4, generator=g), torch.randint(4, (200,), generator=g)
    counts, pred = confusion_counts(z, y), z.argmax(1)
    for a in range(4):
        for b in range(4): assert counts[a, b] == sum(1 for t, p in zip(y.tolist(), pred.tolist()) if (t, p) == (a, b))
    pairs = worst_pairs(counts, 10)
    both = [int(counts[a, b]+counts[b, a]) for a, b in pairs]
    assert len(pairs) == 6 and both == sorted(both, reverse=True) and all(counts[a, b] >= counts[b, a] for a, b in pairs)
    df = Diagnosis(z, y, n=3).df
    want = Comparison(z, z, y).confused_pairs_of(pred)
    for o in df.itertuples(): assert o.count == want[o.true, o.predicted] and o.back == want.get((o.predicted, o.true), 0)


def test_separation_and_intervals():
    rng = np.random.default_rng(0)
    s, t = rng.normal(.7, 1, 60), rng.normal(0, 1, 40)
    apart = told_apart(s, t)
    assert apart.auc == pytest.approx(roc_auc_score(np.r_[np.ones(60), np.zeros(40)], np.r_[s, t]))
    draws = [told_apart(rng.choice(s, 60), rng.choice(t, 40)).auc for _ in range(400)]
    assert np.std(draws)*1.96 == pytest.approx(apart.high-apart.auc, rel=.25) # as a bootstrap has it
    assert told_apart([], [1]).low == 0 and share_interval(0, 0) == (0, 1)
    assert share_interval(5, 50) == pytest.approx((.0435, .2136), abs=1e-3) # Wilson 1927


def test_needed_images_of_a_known_law():
    df = pd.DataFrame([(r, n, (3+r)*n**-.5) for r in range(3) for n in (25, 50, 100)], columns=['repeat', 'n', 'error'])
    middle, low, high = images_needed(df, .2)
    assert [low, middle, high] == pytest.approx([(c/.2)**2-100 for c in (3, 4, 5)])
    assert images_needed(df, 10.) == (0, 0, 0) # it is there already
    assert images_needed(df.assign(error=.3), .2) is None and about(math.inf) == 'more than can be told'


def test_a_gap_or_none():
    rng = np.random.default_rng(0)
    one = rng.normal(size=(300, 20))
    gap = np.concatenate([one[:200], one[200:]+np.r_[8, np.zeros(19)]])
    assert two_clusters(torch.tensor(one)).explained < .75 < .85 < two_clusters(torch.tensor(gap)).explained
    k = two_clusters(torch.tensor(gap))
    assert k.share == pytest.approx(1/3, abs=.02) and len(set(k.nearest(torch.tensor(gap[:200])))) == 1


def test_learner_is_asked_without_augmentation_and_left_alone():
    dls = small(n_train=96, bs=16)
    dls.train.after_batch.add(CropBatch(pad=8))
    learn = make_learner(dls)
    before = state(learn.model)
    with quiet(learn):
        rec = MarginRecorder()
        learn.fit(2, 1e-3, cbs=rec)
        before = state(learn.model)
        d = learn.diagnose(memory=rec)
        z = learn.get_preds(dl=dls.test_dl(dls.train_ds.x), act=lambda o: o)[0]
    assert torch.allclose(d.train.z, z, atol=1e-4) and torch.equal(d.train.y, dls.train_ds.y) and same(before, state(learn.model))
    assert d.train.features.shape == (96, 84) and d.files is None and dls.train_ds.split_idx == 0
    assert d.evidence.source == 'training' and torch.equal(d.evidence.margin, rec.margin)
    learn.add_cb(rec)
    assert torch.equal(learn.diagnose().evidence.margin, rec.margin) # found among the callbacks
    head = learn.model[-1]
    assert torch.allclose(head(d.features), d.z, atol=1e-4) # the features are what the last layer reads


def test_baseline_beside_and_a_network_without_last_layer(dls, base):
    learn = make_learner(dls, seed=1)
    with quiet(learn): learn.fit(1, 1e-3)
    d = learn.diagnose(base, n=3)
    c = learn.compare(base)
    for o in d.df.itertuples(): assert o.base == c.confused_pairs_of(c.base_pred).get((o.true, o.predicted), 0)
    conv = Learner(dls, nn.Sequential(nn.Conv2d(1, 10, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()))
    answers = network_answers(conv, dls.valid)
    assert answers.features is None and conv.diagnose(n=2).evidence is None


def test_json(tmp_path):
    d, _ = diagnosis('merge')
    o = json.loads(d.to_json(tmp_path/'d.json'))
    assert o == json.loads((tmp_path/'d.json').read_text()) and 'NaN' not in d.to_json()
    assert [p['verdict'] for p in o['pairs']] == d.df.verdict.tolist() and len(o['suspicious']) == len(d.suspicious) and o['classes'] == d.vocab


def test_nothing_confused_and_little_known():
    z, y = torch.eye(3)*5, torch.arange(3)
    d = Diagnosis(z, y, ['a', 'b', 'c'])
    assert not len(d.df) and not len(d.suspicious) and 'nothing to diagnose' in repr(d)
    assert list(d.df.columns[:5]) == ['true', 'predicted', 'count', 'verdict', 'why'] and json.loads(d.to_json())['pairs'] == []
    confused = Diagnosis(z.repeat(9, 1), torch.cat([y.repeat(8), torch.tensor([1, 1, 2])]), ['a', 'b', 'c'])
    assert set(confused.df.verdict) == {'not clear'} and confused.df.why.str.contains('too few').all()


def test_refusals():
    z, y = torch.randn(6, 3), torch.arange(6)%3
    for kwargs, words in ((dict(z=z[:, :1], y=y*0), 'only one class'), (dict(y=y[:4]), 'for each of the'), (dict(y=y+1), 'from 0 to 2'),
                          (dict(z=z*math.nan), 'diverge'), (dict(y=None), 'need labels'), (dict(vocab=['a', 'b']), 'images, 2'),
                          (dict(train=Answers(z, None, None)), 'only with their labels'), (dict(train=Answers(z[:, :2], y, None)), r'training images must have shape \(images, 3\)'),
                          (dict(features=torch.zeros(5, 2)), '5 features of the validation'),
                          (dict(train=Answers(None, y, None), files=['a']), '1 files of the training')):
        with pytest.raises(ValueError, match=words): Diagnosis(**{**dict(z=z, y=y), **kwargs})


def test_margins_that_a_memory_has_kept():
    "Of `FocusMemory` and of a `FocusNetCallback` among the callbacks, also of a memory that `focus` was given"
    dls = small(n_train=96, bs=16)
    learn = make_learner(dls)
    given = Memory()
    with quiet(learn): learn.focus(2, 1e-3, given, cbs=(rec := MarginRecorder()))
    assert kept_margins(learn) is None and learn.diagnose().evidence.source == 'features' # the callback is gone
    found = learn.diagnose(memory=given).evidence
    assert found.source == 'training' and torch.equal(found.margin, given.margin) and torch.allclose(found.margin, rec.margin, atol=1e-4)
    for cb in (FocusMemory(start=0.), FocusNetCallback(Memory())):
        learn = make_learner(dls, cbs=cb)
        assert kept_margins(learn) is None # nothing was said yet
        with quiet(learn):
            learn.fit(2, 1e-3, cbs=(rec := MarginRecorder()))
            d = learn.diagnose()
        assert type(kept_margins(learn)) is Memory and d.evidence.source == 'training'
        assert d.evidence.margin.isfinite().all() and torch.allclose(d.evidence.margin, rec.margin, atol=1e-4)


@pytest.mark.parametrize('near,verdict', [(True, 'split'), (False, None)])
def test_two_clusters_of_which_three_images_are_confused(near, verdict):
    "Three confusions show nothing; that one whole cluster lies nearer to the other class does"
    rng, n = np.random.default_rng(0), 80
    f = rng.normal(size=(3*n, 6))
    f[:n//2, 0] += 9  # class 0: two clusters with a plain gap
    y = torch.arange(3).repeat_interleave(n)
    z = torch.from_numpy(rng.normal(0, .5, size=(3*n, 3))).float() + 4*torch.eye(3)[y]
    if near: z[:n//2, 1] += 1.5  # one of them is nearer to class 1
    for i in (0, n//2-1, n-1): z[i, 1] = z[i, 0]+1
    d = Diagnosis(z, y, ['a', 'b', 'c'], Answers(z, y, torch.from_numpy(f).float()), torch.from_numpy(f).float())
    case = Case(d, 0, 1)
    assert case.count == 3 and (case.split() and case.split().verdict) == verdict
    k = two_clusters(d.train.features[:n])
    apart = [np.asarray(z[:n, 0]-z[:n, 1])[np.asarray(k.nearest(d.features[:n])) == o] for o in (0, 1)]
    assert case.leaning(0, 1, k) == pytest.approx(mannwhitneyu(*apart).pvalue, rel=1e-3)


def test_what_helps_is_said_and_where_the_labels_are():
    d, _ = diagnosis('relabel')
    text, rows = d.text('`suspicious` in d.json'), d.df
    assert text.count('What helps: ') == len(rows) and 'look through `suspicious` in d.json' in text and '.suspicious' not in text
    assert repr(d) == d.text() and 'see `.suspicious`' in repr(d)


def test_a_network_that_cannot_judge_labels(dls):
    "Untrained, or so little trained that it contradicts many labels of its own training: said first; a trained one is not warned of"
    learn = make_learner(dls)
    assert 'hardly right more often than by guessing' in learn.diagnose().summary
    with pytest.raises(ValueError, match='`n`, the number of pairs, must be at least 1, but is 0'): learn.diagnose(n=0)
    z, y, n = torch.eye(4)[torch.arange(40) % 4]*4, torch.arange(40) % 4, 40
    for wrong, warned in ((2, False), (3, True)):
        margin = torch.ones(n)
        margin[:wrong] = -1.
        d = Diagnosis(z.roll(2, 0)*(torch.arange(n) < 8)[:, None] + z*(torch.arange(n) >= 8)[:, None], y, None, Answers(z, y, None), evidence=LabelEvidence(margin, (y+1) % 4, 'training'))
        assert (f'contradicts {wrong} of 40 labels' in d.summary) is warned, d.summary


# -- contrast maps as evidence ----------------------------------------------------------------------------------------

@pytest.fixture(scope='module')
def seeing():
    "A convolutional network that has learnt sevens under two names, by the toss of a coin"
    dls = digits_dls(size=16, bs=32, device='cpu')
    g = torch.Generator().manual_seed(1)
    toss = lambda y: torch.where((y == 7) & (torch.rand(len(y), generator=g) < .5), 10, y)
    sets = [(o.x, toss(o.y)) for o in (dls.train_ds, dls.valid_ds)]
    twins = type(dls).from_tensors(*sets, [f'd{i}' for i in range(11)], bs=32, device='cpu')
    set_seed(1)
    learn = Learner(twins, small_cnn(11, 1))
    with quiet(learn): learn.fit_one_cycle(5, 1e-2)
    return learn


def test_contrast_share_is_that_of_class_activation_maps(seeing):
    "Independent: from the maps of the pictures' page, image by image"
    xb, y = seeing.dls.valid.one_batch()
    maps = class_maps(seeing.model, xb).double()
    for a, b in ((7, 10), (3, 8), (0, 1)):
        rest = both = 0
        for m in maps: rest, both = rest+float((m[a]-m[b]).var()), both+float(m[a].var()+m[b].var())
        assert contrast_share(seeing.model.eval(), (xb,), a, b) == pytest.approx(rest/both, rel=1e-4)


def test_one_class_under_two_names_has_flat_contrast_maps(seeing):
    before = state(seeing)
    d = seeing.diagnose()
    found = row(d, 'd7', 'd10')
    pair = (7, 10) if found.true == 'd7' else (10, 7)
    assert found.verdict == 'merge' and list(d.contrasts) == [pair] and d.contrasts[pair] < .2
    assert f'{d.contrasts[pair]:.0%} of what the maps' in found.why and same(before, state(seeing))
    other = {o: seen_contrast(seeing, seeing.dls.valid, Case(d, *o)) for o in ((3, 8), (1, 4), (0, 6))}
    assert min(other.values()) > .4
    d.contrasts[pair] = .6  # where the network looks for the two in different places, they are not one
    other = Case(d, *pair)
    assert other.merge() is None and other.finding().verdict != 'merge'
    assert ('60% of what the maps' in other.finding().why) == (other.finding().verdict == 'not clear')


class Tokens(nn.Module):
    "Patches that become tokens, as in a transformer"
    def __init__(self):
        super().__init__()
        self.patches, self.mix, self.head = nn.Conv2d(1, 8, 4, 4), nn.Linear(8, 8), nn.Linear(8, 11)
    def forward(self, x): return self.head(self.mix(self.patches(x).flatten(2).transpose(1, 2)).mean(1))


class ChannelsBehind(nn.Module):
    "Maps `(B, h, w, C)`, as in timm's Swin"
    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(1, 24, 4, 4), nn.LayerNorm(24), nn.Linear(24, 11)
    def forward(self, x): return self.head(self.norm(self.conv(x).permute(0, 2, 3, 1)).mean((1, 2)))


def test_the_last_map_of_a_network():
    x = torch.rand(2, 3, 64, 64)
    resnet = torchvision.models.resnet18(num_classes=4).eval()
    assert last_map(resnet, x) is resnet.layer4
    mobile = torchvision.models.mobilenet_v2(num_classes=4).eval()
    assert last_map(mobile, x) is mobile.features
    behind = ChannelsBehind()
    assert last_map(behind, torch.rand(2, 1, 32, 32)) is behind.conv  # not what the LayerNorm gives
    for net in (Tokens(), nn.Sequential(nn.Flatten(), nn.Linear(256, 11))): assert last_map(net, torch.rand(2, 1, 16, 16)) is None
    assert last_map(nn.Linear(5, 3), torch.rand(2, 5)) is None and math.isnan(contrast_share(nn.Linear(5, 3), (torch.rand(4, 5),), 0, 1))


def test_a_network_with_layers_in_place_and_one_without_gradient():
    conv, norm, act = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True)
    net = nn.Sequential(conv, norm, act, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)).eval()
    tail = nn.Sequential(conv, nn.Hardswish(inplace=True), nn.Dropout(inplace=True), nn.Flatten(), nn.Linear(4*36, 3)).eval()
    x = torch.rand(6, 1, 8, 8)
    with torch.no_grad(): assert all(0 < contrast_share(o.requires_grad_(False), (x,), 0, 2) for o in (net, tail))
    class Answers(nn.Sequential):
        @torch.no_grad()
        def forward(self, x): return super().forward(x)
    assert math.isnan(contrast_share(Answers(net), (x,), 0, 2))


def test_images_of_fastais_and_pytorchs_loaders(seeing):
    dl = seeing.dls.valid
    x, y = images_of(dl, [3, 0, 7])
    want = next(iter(dl.new(shuffle=False, drop_last=False)))
    assert torch.equal(y, want[1][[3, 0, 7]]) and torch.equal(x, want[0][[3, 0, 7]])
    plain = torch.utils.data.DataLoader([(torch.full((1,), float(i)), i) for i in range(9)], batch_size=4, shuffle=True)
    assert images_of(plain, [8, 2])[0].flatten().tolist() == [8, 2]


def test_a_network_without_maps_is_diagnosed_as_before():
    dls = digits_dls(n_train=100, size=16, bs=32, device='cpu')
    learn = Learner(dls, nn.Sequential(nn.Flatten(), nn.Linear(256, 10)))
    d = learn.diagnose()
    assert all(math.isnan(v) for v in d.contrasts.values()) and 'maps' not in ' '.join(d.df.why)
