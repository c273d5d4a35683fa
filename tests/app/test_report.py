"The report: what it says, that it loads nothing, that names cannot inject anything."
import base64, io
from html.parser import HTMLParser
import pytest, torch
from fastai.vision.all import Learner, set_seed
from focusnet_fastai.data.memory import InMemoryLoaders
from focusnet_fastai.data.digits import digits_dls
from focusnet_fastai.data.folder import folder_dls
from focusnet_fastai.see.examples import digit_learners
from focusnet_fastai.compare import Comparison
from focusnet_fastai.app.photo_network import digit_photos, photo_learner
from focusnet_fastai.app.report import advice, report_html, top_confusions
from focusnet_fastai.compare import heading, probability_sentence, split_sentence


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
    assert p.addresses and all(a.startswith('data:image/png;base64,') for a in p.addresses)
    assert not {'script', 'link', 'iframe', 'object'} & set(p.tags) and not p.handlers
    assert 'url(' not in html and '@import' not in html and "default-src 'none'" in html
    from PIL import Image
    for a in p.addresses: Image.open(io.BytesIO(base64.b64decode(a.split(',')[1]))).verify()


def learn_names(c): return Comparison(c.z, c.zb, c.y, c.vocab, ('Baseline', 'FocusNet'))


def test_the_page_has_the_numbers(pair, html):
    base, learn = pair
    c, p = learn.compare(base), Page(html)
    for name in c.names:
        for v in (f'{c.df.accuracy[name]:.2%}', f'{c.df.nll[name]:.4f}', f'{c.df.ece[name]:.4f}'): assert v in p.text, v
    assert f'Fixed: {len(c.fixed)}. Broken: {len(c.broken)}. Exact McNemar test: p = {c.p:.3g}.' in p.text
    assert f'Fixed: {len(c.fixed)} image' in p.text and f'Broken: {len(c.broken)} image' in p.text
    for t, k, before, after in top_confusions(c): assert before == int(((c.y == int(t)) & (c.base_pred == int(k))).sum())
    for word in ('Seed', '5 of <each>', 'Sequential', '100 for training, 797 for validation', '32 x 32 pixels', 'torch', "load_learner('focusnet.pkl')", 'cpu:'):
        assert word in p.text, word
    assert 'Commit' not in p.text and advice(learn_names(c)) in p.text and 'The baseline and FocusNet are two networks' in p.text
    assert p.tags.count('table') >= 5 and html.count('class="matrix"') == 2
    assert p.tags.count('img') == min(len(c.fixed), 8) + min(len(c.broken), 8) + 2  # class maps, contrast maps


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
    assert not {'script', 'b', 'i', 'u'} & set(p.tags) and not p.handlers and 'x' not in p.addresses
    assert evil in p.text and quotes in p.text and 'alert(3)' in p.text and bad.name in p.text and '<script>alert(5)</script>' in p.text
    assert all(a.startswith('data:') for a in p.addresses)


def test_many_classes_have_pairs_in_the_place_of_matrices():
    n = 25
    x, y = torch.randint(0, 255, (75, 3, 16, 16), dtype=torch.uint8), torch.arange(75) % n
    dls = InMemoryLoaders.from_tensors((x, y), (x, y), [f'class {i}' for i in range(n)], bs=25)
    net = lambda: torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(8, n))
    set_seed(0)
    base, learn = Learner(dls, net()), Learner(dls, net())
    html = report_html(learn, base.model)
    assert 'class="matrix"' not in html and 'Matrices of 25 classes would not fit' in html and 'taken for' in html


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
