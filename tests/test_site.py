"The documentation site, without building it: what gets an entry, what a link is, what the checker finds; and the examples of CONTRIBUTING"
import ast, re, sys
from pathlib import Path
import pytest
from fastcore.docments import docments

root = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(root/'docs'))
import check, gallery, pages  # noqa: E402


@pytest.fixture(scope='module')
def site():
    found = pages.read_pages()
    return found, pages.Names(found), pages.Targets(found)


def page_of(site, room): return next(o for o in site[0] if o.room == room)


def test_every_name_has_one_entry_and_a_lesson(site):
    "What the star import gives, and the methods that it adds to `Learner`: one signature, and a lesson on the same page that uses the name"
    entries = {}
    for p in site[0]:
        for o in filter(pages.documented, p.definitions): entries.setdefault(pages.shown_name(o), []).append(p)
    wanted = pages.given() | {o: None for o in entries if o.startswith('Learner.')}
    assert len(wanted) > 65
    for name, room in wanted.items():
        where = [p for p in entries.get(name, []) if room in (None, p.room)]
        assert len(where) == 1, (name, [p.doc for p in where])
        assert name.split('.')[-1] in where[0].used_in_lessons(), f'{where[0].path.name} has no lesson with {name}'


def sample(
    a, # first
    b:int=3, # second, `code`
    # above
    c:str|None='x',
    *,
    d:float=1. # last
)->list: # what comes out
    "A sample"


def test_meanings_are_those_of_docments():
    text = Path(__file__).read_text(encoding='utf-8')
    node = next(o for o in ast.parse(text).body if getattr(o, 'name', '') == 'sample')
    assert pages.meanings(node, text) == {k: v for k, v in docments(sample, returns=True).items() if v}


def test_what_stands_behind_the_colon():
    "In a header of one line it is about the result, not about the last parameter"
    node = ast.parse(text := 'def f(self, x): # logits\n    return x').body[0]
    assert pages.meanings(node, text) == {'return': 'logits'}


def test_entry_of_a_patched_method(site):
    "Without `self`, under the name of the class; types and defaults as written, bars in a table escaped"
    o = next(pages.definitions('@patch\ndef draw(self:Learner, base, # whom to draw\n  n:int|None=3 # how *many*\n)->dict: # pictures\n  "Draw"'))
    text = pages.entry(o, 'focusnet_fastai.x', False)
    assert '{py:method} Learner.draw(base, n=3)' in text and ':module: focusnet_fastai.x' in text
    assert r'| `n` | `int\|None` | `3` | how \*many\* |' in text.replace('int \\| None', 'int\\|None') and '| *returns* | `dict` |  | pictures |' in text


def test_links_of_names(site):
    "Names in backticks become links: not in code, not in headings, not where several have the name"
    _, names, _ = site
    said = pages.linked('# `FocusNetCallback`\n`FocusNetCallback` and `learn.compare(base)` and `learn.compare`\n```python\n`refocus`\n```', names)
    assert said.count('{py:obj}') == 2 and '<focusnet_fastai.focusnet.FocusNetCallback>' in said and '<focusnet_fastai.compare.Learner.compare>' in said
    assert names.find('x') is None


def test_links_between_pages(site):
    _, _, targets = site
    assert targets.of('../results.ipynb#what-holds', root/'nbs/tutorials') == '/results.ipynb#what-holds'
    assert targets.of('data', root/'nbs').startswith('/library/index.md#') and targets.of('https://x.org', root) == 'https://x.org'
    with pytest.raises(ValueError, match='nowhere.ipynb leads to nothing'): targets.of('nowhere.ipynb', root/'nbs')


def test_cells_of_the_site(site):
    "The source is folded, lessons keep their outputs, hidden cells are gone, no output needs a kernel or names a warning"
    found, names, targets = site
    p = page_of(site, 'loss')
    cells = list(pages.site_cells(p, found, names, targets))
    assert sum('hide-input' in c['metadata'].get('tags', ()) for c in cells) == sum(c.exported for c in p.cells)
    assert any(c.get('outputs') for c in cells) and not any('nbdev_export' in c['source'] or c['source'].startswith('#|') for c in cells)
    assert '{py:function} focus_picking_loss(' in ''.join(c['source'] for c in cells) and cells[-1]['id'] == 'see-also'


def test_gallery_has_every_method(site):
    "The registry, its table, the families and the measured costs name the same methods; each formula is MathML"
    p = page_of(site, 'methods.registry')
    listed = {o for names in gallery.families.values() for o in names}
    assert listed == set(gallery.classes(p)) == set(gallery.advice(p)) and set(gallery.costs()) <= listed
    text = gallery.page_text(p, site[1], dict(kd='/images/methods/kd.svg'))
    assert text.count(':::{container} method') == len(listed) and '![' in text and '<focusnet_fastai.methods.byot.BYOT>' in text


def test_checker_of_links(tmp_path):
    (tmp_path/'a.html').write_text('<a href="b.html#there">x</a><a href="b.html#nowhere">x</a><a href="c.html">x</a><script src="https://cdn.org/x.js"></script>'
                                   '<a href="https://paper.org">x</a><link rel="canonical" href="https://own.org"><img src="d.png"><a href="#">top</a>')
    (tmp_path/'b.html').write_text('<p id="there">')
    (tmp_path/'s.css').write_text('@import "//fonts.org/x.css"; a { background: url(data:image/png;base64,xx) }')
    found = list(check.faults(tmp_path))
    assert len(found) == 5 and all(any(o in f for f in found) for o in ('b.html#nowhere', 'c.html', 'cdn.org', 'd.png', 'fonts.org'))
    assert check.external(tmp_path) == ['https://own.org', 'https://paper.org']


def test_method_of_contributing():
    "The twenty lines of CONTRIBUTING train, with their terms as columns"
    from fastai.vision.all import Learner, set_seed
    from focusnet_fastai.data.digits import digits_dls
    from focusnet_fastai.models import lenet5
    block = re.search(r'```python\n(.*?)```', (root/'CONTRIBUTING.md').read_text(encoding='utf-8'), re.S)[1]
    assert len([o for o in block.splitlines() if o.strip()]) <= 20
    names = {}
    exec(block, names)
    set_seed(0)
    learn = Learner(digits_dls(n_train=64), lenet5(10))
    with learn.no_bar(), learn.no_logging():
        learn.fit(1, 1e-3, cbs=names['Poly'](eps=2.))
    train, cls, poly = learn.recorder.values[-1][0], *learn.recorder.values[-1][-2:]
    assert abs(train - (cls+2*poly)) < 1e-4 and 0 < poly < 1
