"The report: what it says, that it loads nothing, that names cannot inject anything."
import base64, hashlib, io, re
from html.parser import HTMLParser
from types import SimpleNamespace
import numpy as np, pandas as pd, pytest, torch
from fastcore import xml as h
from PIL import Image
from fastai.vision.all import Learner, set_seed
from focusnet_fastai.data.memory import InMemoryLoaders
from focusnet_fastai.data.digits import digits_dls
from focusnet_fastai.data.folder import folder_dls
from focusnet_fastai.see.examples import digit_learners
from focusnet_fastai.compare import Comparison
from focusnet_fastai.app.photo_network import digit_photos, photo_learner
from focusnet_fastai.app.page import confusion, contrast_palette, heat_palette, map_uri
from focusnet_fastai.label_sets import LabelSets, crossed_sets, set_measures, suitable_coverage
from focusnet_fastai.app.confusions import confusion_section, photo_plan, shown_pairs, suspects_section, top_confusions
from focusnet_fastai.app.sets import sets_section
from focusnet_fastai.app.report import advice, report_html
from focusnet_fastai.see.contrast import contrast_overlay
from focusnet_fastai.see.look import paired_looks
from focusnet_fastai.see.parts import heat_colours, overlay
from focusnet_fastai.compare import heading, probability_sentence, split_sentence

pytestmark = pytest.mark.slow  # as a whole; `make quick` leaves it out


class Page(HTMLParser):
    "Tags, addresses and text of a page"
    def __init__(self, html):
        super().__init__()
        self.tags, self.addresses, self.texts, self.handlers, self.open = [], [], [], [], []
        self.feed(html)
    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [v for k, v in attrs if k in ('src', 'href', 'srcset', 'data', 'action')]
        self.handlers += [k for k, v in attrs if k.startswith('on')]
    def handle_data(self, s): self.texts.append(s)
    @property
    def text(self): return ' '.join(self.texts)


@pytest.fixture(scope='module')
def pair(): return digit_learners(n_train=100, n_epoch=5)


@pytest.fixture(scope='module')
def html(pair): return report_html(pair[1], pair[0], settings={'Seed': 7, 'Epochs': '5 of <each>'})


def test_the_page_loads_nothing(html):
    p = Page(html)
    assert p.addresses and all(a.startswith('data:image/') for a in p.addresses)
    assert not {'link', 'iframe', 'object'} & set(p.tags) and not p.handlers and p.tags.count('script') == 1
    assert set(re.findall(r'url\((.{11})', html)) == {'data:image/'} and '@import' not in html and "default-src 'none'" in html
    script = html[html.index('<script>')+8:html.index('</script>')]
    assert f"script-src &#39;sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}" in html.replace("'sha", '&#39;sha')
    for a in p.addresses: Image.open(io.BytesIO(base64.b64decode(a.split(',')[1]))).verify()


def learn_names(c): return Comparison(c.z, c.zb, c.y, c.vocab, ('Baseline', 'FocusNet'))


def test_the_page_has_the_numbers(pair, html):
    base, learn = pair
    c, p = learn.compare(base), Page(html)
    for name in c.names:
        for v in (f'{c.df.accuracy[name]:.2%}', *[f'{c.df[o][name]:.4f}' for o in ('nll', 'ece', 'nll_calibrated', 'ece_calibrated')], f'{c.df.temperature[name]:.2f}'): assert v in p.text, v
    assert f'Fixed: {len(c.fixed)}. Broken: {len(c.broken)}. Exact McNemar test: p = {c.p:.3g}.' in p.text
    assert f'Fixed: {len(c.fixed)} image' in p.text and f'Broken: {len(c.broken)} image' in p.text
    for t, k, before, after in top_confusions(c): assert before == int(((c.y == int(t)) & (c.base_pred == int(k))).sum())
    for word in ('Seed', '5 of <each>', 'Sequential', '100 for training, 797 for validation', '32 x 32 pixels', 'torch', "load_learner('focusnet.pkl')", 'cpu:'):
        assert word in p.text, word
    assert 'Commit' not in p.text and advice(learn_names(c)) in p.text and 'The baseline and FocusNet are two networks' in p.text
    assert p.tags.count('table') >= 5 and html.count('class="matrix"') == 2
    assert p.tags.count('img') == min(len(c.fixed), 8) + min(len(c.broken), 8) + 4  # class maps, contrast maps, reliability of each


def counted(fixed, broken, same=30):
    y, right, wrong = torch.zeros(fixed+broken+same, dtype=torch.long), torch.tensor([3., 0.]), torch.tensor([0., 3.])
    z, zb = right.repeat(len(y), 1), right.repeat(len(y), 1)
    zb[:fixed], z[fixed:fixed+broken] = wrong, wrong
    return Comparison(z, zb, y, names=('Baseline', 'FocusNet'))


@pytest.mark.parametrize('fixed,broken,head,split', [
    (20, 5, 'FocusNet is more accurate than the baseline', 'That is clear'), (5, 20, 'FocusNet is less accurate than the baseline', 'That is clear'),
    (5, 0, 'No clear difference', 'With so few differences'), (6, 0, 'FocusNet is more accurate', 'fixes 6 mistakes of the baseline and makes 0 new ones'),
    (9, 8, 'No clear difference', 'That is not clear'), (0, 0, 'No clear difference', 'exactly the same images'), (300, 0, 'more accurate', 'less than 0.1%'),
    (1, 1, 'No clear difference', 'fixes 1 mistake of the baseline and makes 1 new one.')])
def test_the_verdict_follows_from_the_numbers(fixed, broken, head, split):
    c = counted(fixed, broken)
    assert head in heading(c) and split in split_sentence(c)
    assert advice(c).startswith('Keep FocusNet' if fixed > broken else 'Keep the baseline') and ('clearly' in advice(c)) == (c.p < .05)


def test_probabilities_in_words():
    s = probability_sentence(counted(20, 5))
    assert 'log-likelihood falls to' in s and 'calibration error falls to' in s
    assert 'stays at' in probability_sentence(counted(0, 0))
    flat = counted(0, 0)
    flat = Comparison(flat.z/10, flat.zb, flat.y)
    assert 'less sure than it is right' in probability_sentence(flat) and 'rises to' in probability_sentence(flat)


def test_names_cannot_inject_anything(tmp_path):
    "Class folders, photos and damaged files with names that are HTML"
    evil, quotes = '<img src=x onerror=alert(1)>', '''a"b'c&amp;<script>alert(2)<'''
    photos = digit_photos(tmp_path/'photos', (3, 8), n=12)
    for old, new in (('3', evil), ('8', quotes)):
        (photos/old).rename(photos/new)
        for f in sorted((photos/new).iterdir()): f.rename(f.with_name(f'"><script>alert(3)<{f.name}'))
    bad = photos/evil/'<b onload=alert(4)>.png'
    bad.write_bytes(b'no image')
    with pytest.warns(UserWarning, match='left out'): dls = folder_dls(photos, size=32, num_workers=0, valid_pct=.5)
    set_seed(0)
    base, learn = [photo_learner(dls, pretrained=False) for _ in range(2)]
    with base.no_bar(), base.no_logging(): base.fit(1, 1e-3)
    html = report_html(learn, base, title='<script>alert(5)</script>', settings={'<i>': '<u>'}, export="x'<script>.pkl")
    p = Page(html)
    assert not {'i', 'u'} & set(p.tags) and p.tags.count('script') == 1 and not p.handlers and 'x' not in p.addresses
    assert evil in p.text and quotes in p.text and 'alert(3)' in p.text and bad.name in p.text and '<script>alert(5)</script>' in p.text
    assert all(a.startswith('data:') for a in p.addresses)


def drawn(n_classes, side=96, each=5):
    "Smooth pictures that nothing tells apart, and two networks that guess"
    set_seed(0)
    n = n_classes*each
    x = torch.nn.functional.interpolate(torch.rand(n, 3, 12, 12), size=(side, side), mode='bicubic').clamp(0, 1)
    x, y = (x*255).to(torch.uint8), torch.arange(n) % n_classes
    dls = InMemoryLoaders.from_tensors((x[:100], y[:100]), (x, y), [f'a rather long name of a class, {i}' for i in range(n_classes)], bs=50)
    def net(): return torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, 4), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(8, n_classes))
    return Learner(dls, net()), Learner(dls, net())


def test_200_classes(tmp_path):
    "The 15 classes that are confused most, photographs behind each number, in less than 10 MB"
    base, learn = drawn(200)
    path = learn.report(base, tmp_path/'report.html')
    html, c = path.read_text(encoding='utf-8'), learn.compare(base)
    classes, pairs = shown_pairs(c)
    p = Page(html)
    assert path.stat().st_size < 10e6 and 'Of 200 classes, these 15 are confused most' in p.text
    counts = {o: int(((c.y == o[0]) & ((c.pred == o[1]) | (c.base_pred == o[1]))).sum()) for o in pairs}
    assert len(classes) == len(set(classes)) == 15 and list(counts.values()) == sorted(counts.values(), reverse=True)
    assert html.count('popover="auto"') == len(pairs) and p.text.count('other classes') >= 2
    assert html.count('class="photo"') == min(150, sum(min(n, 6) for n in counts.values()))


def test_behind_the_numbers(pair, html):
    "Every number of a mistake opens something, which holds the surest images of that pair"
    base, learn = pair
    c = learn_names(learn.compare(base))
    opens, there = set(re.findall(r'popovertarget="(pair-\d+-\d+)" aria-label', html)), set(re.findall(r'<div id="(pair-\d+-\d+)"', html))
    mistakes = {f'pair-{t}-{k}' for pred in (c.pred, c.base_pred) for t, k in zip(c.y.tolist(), pred.tolist()) if t != k}
    assert opens == there == mistakes
    plan = photo_plan(c, shown_pairs(c)[1])
    for (t, k), idxs in plan.items():
        sure = [max(float(z[i].softmax(0)[k]) for z, pred in ((c.z, c.pred), (c.zb, c.base_pred)) if pred[i] == k) for i in idxs]
        assert all(c.y[i] == t for i in idxs) and sure == sorted(sure, reverse=True) and len(idxs) <= 6
    assert photo_plan(c, shown_pairs(c)[1], most=3, each=1) == {o: plan[o][:1] for o in shown_pairs(c)[1][:3]}


def test_a_class_map_of_the_report_is_that_of_the_figures(pair):
    "The small picture over the photograph has the colours and the opacity of `overlay`"
    base, learn = pair
    c = learn_names(learn.compare(base))
    (t, k), (i, *_) = next(iter(photo_plan(c, shown_pairs(c)[1]).items()))
    o = paired_looks(learn, base, [i], [t], [k], size=(20, 20))[0]
    for values, palette, want in ((o.cams[0][0], heat_palette(), heat_colours(o.cams[0][0])), (o.contrasts[1], contrast_palette(), None)):
        uri = map_uri(values if want is not None else (values+1)/2, palette)
        rgba = np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.split(',')[1]))).convert('RGBA'))/255
        shown = rgba[..., 3:]*rgba[..., :3] + (1-rgba[..., 3:])*.5
        grey = np.full((20, 20, 3), .5)
        np.testing.assert_allclose(shown, overlay(grey, values) if want is not None else contrast_overlay(grey, values), atol=.04)


def test_diagnosis(pair):
    "Verdicts open the photographs of their pair; suspicious labels have a check box each; other columns do not matter"
    base, learn = pair
    c = learn_names(learn.compare(base))
    t, k = shown_pairs(c)[1][0]
    df = pd.DataFrame([dict(true=str(t), predicted=str(k), count=9, verdict='collect', why='Few <images>.', more=1)])
    y = str(int(learn.dls.train_ds[5][1]))
    suspicious = pd.DataFrame([dict(index=5, file='', label=y, suggested='8', score=.5)])
    html = report_html(learn, base, diagnosis=SimpleNamespace(df=df, suspicious=suspicious), n=1, n_maps=1)
    p = Page(html)
    assert f'popovertarget="pair-{t}-{k}">{t} taken for {k}: 9' in html and 'collect' in p.text and 'Few <images>.' in p.text
    assert html.count('class="choice"') == 1 and f'data-label="{y}"' in html
    empty = SimpleNamespace(df=df[:0], suspicious=suspicious[:0])
    assert 'No pair is confused' in report_html(learn, base, diagnosis=empty, n=1, n_maps=1)


def test_sets_of_classes(pair):
    "The table is that of `set_measures`; sets that were made on other images are used as they are"
    base, learn = pair
    c = learn_names(learn.compare(base))
    coverage = suitable_coverage(max(c.df.accuracy), len(c.y)//2)
    found = [set_measures(crossed_sets(z, c.y, coverage), c.y) for z in (c.zb, c.z)]
    text = Page(report_html(learn, base, compared=c, n=1, n_maps=1)).text
    assert 'It is A or B' in text and all(f"{o['coverage']:.1%}" in text and f"{o['size']:.2f}" in text for o in found)
    every = LabelSets(1., .99, 1., c.vocab, 50)  # the threshold that lets all classes in
    text = Page(h.to_xml(sets_section(c, {'FocusNet': every}))).text
    assert '100.0%' in text and '10.00' in text and 'in 99% of all images' in text and 'Baseline' not in text


def test_labels_of_a_network_that_has_not_learned(pair):
    "Where the network contradicts a third of the labels there are no check boxes, but a sentence"
    _, learn = pair
    n = len(learn.dls.train_ds)
    rows = pd.DataFrame(dict(index=range(n), label='3', suggested='8'))
    html = h.to_xml(suspects_section(learn, rows))
    assert f'contradicts {n} of {n} labels' in html and 'class="choice"' not in html
    assert h.to_xml(suspects_section(learn, rows[:n//5])).count('class="choice"') == min(n//5, 48)


def test_a_network_that_answers_nothing(pair):
    "NaN logits are no answer: the matrix leaves them out"
    base, learn = pair
    c = learn.compare(base)
    z = c.z.clone()
    z[:5] = torch.nan
    bad = Comparison(z, c.zb, c.y, c.vocab, ('Baseline', 'FocusNet'))
    assert all(k >= 0 for _, k in shown_pairs(bad)[1])
    assert confusion(bad.y, bad.pred, 10).sum() == len(c.y)-5 and 'matrix' in h.to_xml(confusion_section(bad))


def test_networks_without_maps_and_without_differences(pair):
    "A network that only has Linear layers, compared with a copy of itself and with another"
    dls = digits_dls(n_train=64)
    set_seed(0)
    base, learn = [Learner(dls, torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(32*32, 10))) for _ in range(2)]
    assert 'There are no class maps of these networks' in report_html(learn, base)
    same = Learner(dls, torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(32*32, 10)))
    same.model.load_state_dict(base.model.state_dict())
    html = report_html(same, base)
    assert 'right on exactly the same images' in html and 'No image was fixed' in html


def test_the_file_is_replaced_as_a_whole(pair, tmp_path):
    base, learn = pair
    path = learn.report(base, tmp_path/'report.html', n=1, n_maps=1)
    page = path.read_text(encoding='utf-8')
    assert page.startswith('<!doctype html') or page.startswith('<!DOCTYPE')
    with pytest.raises(FileNotFoundError, match='There is no folder .*nowhere for report.html'): learn.report(base, tmp_path/'nowhere'/'report.html')
    (tmp_path/'report.html.tmp').mkdir()  # the page cannot be written beside the old one
    with pytest.raises(OSError): learn.report(base, path, n=1, n_maps=1)
    assert path.read_text(encoding='utf-8') == page
