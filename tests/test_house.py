"The plan of the house holds: where rooms are, which way arrows go, what a line may hold (see CONTRIBUTING)"
import ast, json, re, statistics, tokenize
from pathlib import Path
import pytest
from helpers import fresh

root = Path(__file__).resolve().parent.parent
layers = ['', 'data', 'see', 'methods', 'lab', 'app'] # arrows go to earlier ones only; '' is the root
pure = ('loss', 'see.maps', 'see.asking', 'see.cam', 'see.gradcam') # plain PyTorch


def source(nb): return [''.join(c['source']) for c in json.loads(nb.read_text(encoding='utf-8'))['cells'] if c['cell_type'] == 'code']


def pages():
    "Module name of each numbered notebook, in reading order"
    res = {}
    for layer in layers:
        for nb in sorted((root/'nbs'/layer).glob('[0-9]*.ipynb')):
            names = [m[1] for s in source(nb) if (m := re.search(r'^#\| default_exp ([\w.]+)', s))]
            assert len(names) == 1, nb
            res[names[0]] = nb
    return res


rooms = pages()
modules = {r: root/'focusnet_fastai'/(r.replace('.', '/') + '.py') for r in rooms}


def imports(path, room):
    "Names of modules, and of what is taken from them, for each import of a module"
    for o in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
        if isinstance(o, ast.Import): yield from ((a.name, None) for a in o.names)
        elif isinstance(o, ast.ImportFrom):
            above = room.split('.')[:-o.level] if o.level else []
            base = '.'.join(['focusnet_fastai', *above, *([o.module] if o.module else [])]) if o.level else o.module
            yield from ((base, a.name) for a in o.names)


def test_every_room_is_a_page():
    "Modules and notebooks are the same list; numbers are two digits and start anew in each folder"
    here = {str(p.relative_to(root/'focusnet_fastai'))[:-3].replace('/', '.') for p in (root/'focusnet_fastai').rglob('*.py')}
    assert set(rooms) == {o for o in here if not o.endswith('__init__') and o not in ('all', '_modidx')}
    for layer in layers:
        numbers = [nb.name.split('_')[0] for r, nb in rooms.items() if r.rpartition('.')[0] == layer]
        assert numbers == [f'{i:02}' for i in range(len(numbers))], (layer, numbers)
    for r, nb in rooms.items(): assert nb.stem[3:] == r.split('.')[-1], nb


@pytest.mark.parametrize('room', rooms)
def test_arrows_go_one_way(room):
    "A room uses earlier layers, and earlier rooms of its own; nothing finds a module by a string"
    before, layer = list(rooms)[:list(rooms).index(room)], layers.index(room.rpartition('.')[0])
    assert 'import_module' not in modules[room].read_text(encoding='utf-8')
    for module, name in imports(modules[room], room):
        ours = module.removeprefix('focusnet_fastai.')
        if room in pure: assert ours in pure or not module.startswith(('fastai', 'fastcore', 'focusnet_fastai')), (room, module)
        if not module.startswith('focusnet_fastai.'): continue
        to = module.removeprefix('focusnet_fastai.')
        assert to in rooms and layers.index(to.rpartition('.')[0]) <= layer and to in before, f'{room} imports {to}'
        assert not (name or '').startswith('_'), f'{room} takes {name} of {to}'


@pytest.mark.parametrize('room', rooms)
def test_lines_hold_one_idea(room):
    "140 columns, no semicolon between statements"
    with open(modules[room], 'rb') as f: tokens = list(tokenize.tokenize(f.readline))
    wide = [i+1 for i, o in enumerate(modules[room].read_text(encoding='utf-8').splitlines()) if len(o) > 140]
    assert not wide, (room, wide)
    assert not [o.start[0] for o in tokens if o.type == tokenize.OP and o.string == ';'], room


def size(cell):
    "Lines of an export cell, without blank ones and directives; 0 where it only imports"
    lines = [o for o in cell.splitlines() if o.strip() and not o.startswith('#|')]
    tree = ast.parse('\n'.join(lines))
    return 0 if all(isinstance(o, (ast.Import, ast.ImportFrom)) for o in tree.body) else len(lines)


def steps(nb):
    "What a reader meets in a page: sizes of export cells, 'lesson' and 'text', without what is hidden"
    for c in json.loads(nb.read_text(encoding='utf-8'))['cells']:
        text = ''.join(c['source'])
        if c['cell_type'] == 'markdown':
            if not text.startswith('#') or '\n' in text.strip(): yield 'text'
        elif re.match(r'#\| *export', text): yield from [size(text)] if size(text) else []
        elif c['cell_type'] == 'code' and not re.match(r'#\| *(hide|default_exp)', text): yield 'lesson'


def test_pages_go_in_small_steps():
    "Export cells are short, and most are followed by a lesson that runs them"
    found = [o for nb in rooms.values() for o in steps(nb)]
    sizes, lessons = [o for o in found if isinstance(o, int)], found.count('lesson')
    assert statistics.median(sizes) <= 8, statistics.median(sizes)
    assert lessons/len(sizes) >= 1.2, (lessons, len(sizes))


@pytest.mark.parametrize('room', rooms)
def test_no_page_exports_at_length(room):
    "No export cell is longer than 40 lines, and between three of them there is a value, a picture or a sentence"
    row = 0
    for o in steps(rooms[room]):
        row = row+1 if isinstance(o, int) else 0
        assert row <= 2 and (not row or o <= 40), (room, o, row)


@pytest.mark.slow
def test_star_import_loads_what_it_gives():
    "The modules that the star import loads are those it takes names from, and what these are made of"
    code = """
import sys
before = set(sys.modules)
import focusnet_fastai.all
print(*sorted(m.removeprefix('focusnet_fastai.') for m in set(sys.modules)-before if m.startswith('focusnet_fastai.')))
"""
    out = fresh.python(code, cwd=root)
    loaded = set(out.stdout.split()) - {'all', *layers}
    given = {m.removeprefix('focusnet_fastai.') for m, _ in imports(root/'focusnet_fastai/all.py', 'all')}
    parts = {'case', 'contrast_share', 'frozen', 'image_order', 'learning_curve', 'record', 'verdicts', 'app.checks', 'app.confusions', 'app.page', 'app.sets', 'app.style', 'data.archives', 'data.folder_photos', 'data.image_files', 'data.labels', 'data.photo_cache', 'data.picture_file', 'data.pictures', 'see.asking', 'see.items', 'see.look', 'see.network_view', 'see.page', 'see.parts', 'see.text'} # what given rooms are made of
    assert loaded == given | parts, (loaded ^ (given | parts), out.stderr)


def test_no_test_imports_another():
    "What several need stands in tests/helpers"
    for f in (root/'tests').rglob('test_*.py'):
        found = re.search(r'^\s*(from|import)\s+(tests\.)?([\w.]+\.)?(test_\w+|conftest)\b', f.read_text(encoding='utf-8'), re.M)
        assert not found, (f, found[0])
