"""The notebooks as pages of the site: public functions with a table of their parameters, sources folded away, lessons with their outputs.

Only the text of the notebooks is read; nothing is imported or run."""
import ast, io, json, re, tokenize
from collections import namedtuple
from copy import deepcopy
from functools import cache, cached_property
from pathlib import Path

root = Path(__file__).resolve().parent.parent
nbs = root/'nbs'
folders = dict(core='The method', data='Pictures and data sets', see='Looking at networks', methods='Methods', lab='Experiments',
               app='Programs')
files = dict(contributing='CONTRIBUTING.md', changelog='CHANGELOG.md', security='SECURITY.md', releasing='RELEASING.md')


# --- what a cell defines ---------------------------------------------------------------------------------------------------

# name, owner (the class of a method, or None), kind (of Sphinx's Python domain), node, text (of the cell)
Definition = namedtuple('Definition', 'name owner kind node text')


def called(decorator): return ast.unparse(decorator.func if isinstance(decorator, ast.Call) else decorator)


def decorators(node): return {called(o): o for o in node.decorator_list}


def owner_of(node):
    "The class that a patched function belongs to; None for others"
    if 'patch' not in decorators(node): return None
    first = (node.args.posonlyargs + node.args.args)[0]
    return re.split(r'\W', ast.unparse(first.annotation).strip('('))[0]


def kind_of(node, owner):
    "The directive for a function"
    said = ' '.join(map(ast.unparse, node.decorator_list))
    if 'as_prop' in said or 'property' in said: return 'property'
    if 'cls_method' in said or 'classmethod' in said: return 'classmethod'
    return 'method' if owner else 'function'


def definitions(text):
    "What the source of an export cell defines, methods of its classes included"
    for node in ast.parse(text).body:
        if isinstance(node, ast.FunctionDef): yield Definition(node.name, owner_of(node), kind_of(node, owner_of(node)), node, text)
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            yield Definition(node.targets[0].id, None, 'data', node, text)
        elif isinstance(node, ast.ClassDef):
            yield Definition(node.name, None, 'class', node, text)
            for o in node.body:
                if isinstance(o, ast.FunctionDef): yield Definition(o.name, node.name, kind_of(o, node.name), o, text)


def comments(text):
    "Line number: comment"
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    return {o.start[0]: o.string.lstrip('#').strip() for o in tokens if o.type == tokenize.COMMENT}


def arguments(node):
    "The arguments of a function, in order"
    a = node.args
    return [*a.posonlyargs, *a.args, *filter(None, [a.vararg]), *a.kwonlyargs, *filter(None, [a.kwarg])]


def meanings(node, text):
    """The comment beside each parameter and the result, or in the lines above it, as `fastcore.docments` reads them;
    but what stands behind the colon is always about the result"""
    said, lines, source = comments(text), {o.lineno: o.arg for o in arguments(node)}, text.splitlines()
    if node.returns: lines[node.returns.lineno] = 'return'
    lines |= {i: 'return' for i in said if node.lineno <= i < node.body[0].lineno and re.search(r'\)\s*(->[^#]*)?:\s*#', source[i-1])}
    found = {}
    for line, name in lines.items():
        above = line-1
        while above in said and above not in lines: above -= 1
        words = [said[line]] if line in said else [said[i] for i in range(above+1, line)]
        if words: found[name] = ' '.join(words)
    return found


def defaults(node):
    "Parameter: its default, as written"
    a = node.args
    last = [*a.posonlyargs, *a.args][len(a.posonlyargs)+len(a.args)-len(a.defaults):]
    pairs = [*zip(last, a.defaults), *((k, v) for k, v in zip(a.kwonlyargs, a.kw_defaults) if v is not None)]
    return {k.arg: ast.unparse(v) for k, v in pairs}


def signature(node, bound):
    "The parameters without their types; of a method without `self`"
    bare = deepcopy(node)
    for o in arguments(bare): o.annotation = None
    text = ast.unparse(bare.args)
    return re.sub(r'^\w+(, (/, )?)?', '', text) if bound else text


# --- as Markdown ------------------------------------------------------------------------------------------------------------

def plain(text):
    "A comment or docstring as Markdown: what is neither code nor formula must not be read as markup"
    parts = re.split(r'(`[^`]*`|\$[^$]+\$)', text)
    return ''.join(o if i % 2 else re.sub(r'([*<|])', r'\\\1', o) for i, o in enumerate(parts))


def code(text): return f"`{text}`" if text else ''


def row(*cells): return '| ' + ' | '.join(re.sub(r'(?<!\\)\|', r'\\|', o) for o in cells) + ' |'


def passed_on(node):
    "What a function hands its other arguments to"
    o = decorators(node).get('delegates')
    return ast.unparse(o.args[0]) if isinstance(o, ast.Call) and o.args else None


def parameter_rows(node, text, bound):
    "One row a parameter that has a comment, a type or a default"
    said, values = meanings(node, text), defaults(node)
    for o in arguments(node)[bound:]:
        other = passed_on(node) if o is node.args.kwarg else None
        meaning = said.get(o.arg) or (f'as of `{other}`' if other else '')
        cells = [ast.unparse(o.annotation) if o.annotation else '', values.get(o.arg, ''), meaning]
        if any(cells): yield row(code(o.arg), code(cells[0]), code(cells[1]), plain(cells[2]))
    if node.returns or 'return' in said:
        yield row('*returns*', code(ast.unparse(node.returns) if node.returns else ''), '', plain(said.get('return', '')))


def parameter_table(node, text, bound):
    "The table of the parameters, or nothing"
    rows = list(parameter_rows(node, text, bound))
    return '\n'.join(['| parameter | type | default | meaning |', '| --- | --- | --- | --- |', *rows]) if rows else ''


def constructor(o):
    "The `__init__` of a class, where its cell has it"
    return next((f for f in o.node.body if isinstance(f, ast.FunctionDef) and f.name == '__init__'), None)


def function_of(o): return constructor(o) if o.kind == 'class' else o.node if o.kind != 'data' else None


def shown_name(o): return f'{o.owner}.{o.name}' if o.owner else o.name


def entry(o, module, again, link=str):
    "The signature, the docstring and the table of the parameters"
    f, bound = function_of(o), bool(o.owner) or o.kind == 'class'
    args = f'({signature(f, bound)})' if f and o.kind != 'property' else ''
    doc = (ast.get_docstring(o.node) if o.kind != 'data' else None) or ''
    lines = [f'````{{py:{o.kind}}} {shown_name(o)}{args}', f':module: {module}', *([':no-index:'] if again else []), '',
             link(plain(doc)), '', link(parameter_table(f, o.text, int(bound))) if f else '', '````']
    return '\n'.join(lines)


# --- pages -------------------------------------------------------------------------------------------------------------------

def place(path):
    "Where a notebook stands in the site"
    parts = [re.sub(r'^\d\d_', '', o) for o in path.relative_to(nbs).with_suffix('').parts]
    return '/'.join(parts if parts[0] in ('index', 'results', 'tutorials', 'methods') else ['library', *parts])


class Cell:
    "A cell of a notebook"
    def __init__(self, d):
        self.id, self.kind, self.outputs, self.metadata = d['id'], d['cell_type'], d.get('outputs', []), d.get('metadata', {})
        self.text = ''.join(d['source'])
        self.directives = set(re.findall(r'^#\| *(\w+)', self.text, re.M)) if self.kind == 'code' else set()
        self.code = re.sub(r'^#\|.*\n?', '', self.text, flags=re.M).strip('\n')

    @property
    def exported(self): return 'export' in self.directives
    @property
    def hidden(self): return bool(self.directives & {'hide', 'default_exp'})
    @property
    def lesson(self): return self.kind == 'code' and not self.exported and not self.hidden and '#| eval: false' not in self.text
    @property
    def only_imports(self): return all(isinstance(o, (ast.Import, ast.ImportFrom)) for o in ast.parse(self.code).body)
    @cached_property
    def definitions(self): return list(definitions(self.code)) if self.exported else []


class Page:
    "A notebook, and where it stands"
    def __init__(self, path):
        self.path, self.doc = path, place(path)
        self.cells = [Cell(o) for o in json.loads(path.read_text(encoding='utf-8'))['cells']]
        self.title, _, about = self.cells[0].text.partition('\n')
        self.title, self.about = self.title.lstrip('# '), about.lstrip('> ').strip()
        names = [m[1] for o in self.cells if (m := re.match(r'#\| *default_exp ([\w.]+)', o.text))]
        self.room = names[0] if names else None
        self.module = f'focusnet_fastai.{self.room}' if names else None

    @cached_property
    def definitions(self): return [o for c in self.cells for o in c.definitions]

    def used_in_lessons(self):
        "The names that lessons use, as variables or attributes"
        return set(re.findall(r'[A-Za-z_]\w*', '\n'.join(re.sub(r'#.*', '', c.code) for c in self.cells if c.lesson)))

    def imports(self):
        "The rooms that the module takes something from"
        text = '\n'.join(c.code for c in self.cells if c.exported)
        return sorted({m[1] for m in re.finditer(r'^\s*from focusnet_fastai\.([\w.]+) import', text, re.M)})


def documented(o):
    "Does a definition get an entry? Public ones, methods if somebody said something about them"
    if o.name.startswith('_') or (o.owner or '').startswith('_'): return False
    if o.kind == 'data': return o.name in given()
    return not o.owner or bool(ast.get_docstring(o.node)) or bool(meanings(o.node, o.text))


def read_pages():
    "All notebooks, in the order of reading"
    paths = [o for o in sorted(nbs.rglob('*.ipynb')) if '.ipynb_checkpoints' not in o.parts]
    return [Page(o) for o in paths]


@cache
def given():
    "The names that the star import gives, each with its room"
    text = (root/'focusnet_fastai/all.py').read_text(encoding='utf-8')
    lines = re.findall(r'^from \.([\w.]+) import (.+)$', text, re.M)
    names = {name.strip(): room for room, names in lines for name in names.split(',')}
    return {k: home(k, v) for k, v in names.items() if ' as ' not in k}


def home(name, room):
    "The room where a name is made; of one that the root passes on, the room that it comes from"
    text = (root/'focusnet_fastai'/f"{room.replace('.', '/')}.py").read_text(encoding='utf-8')
    m = re.search(rf'^from \.(\w+) import [^\n]*\b{name}\b', text, re.M)
    return m[1] if m and '.' not in room else room


# --- links -------------------------------------------------------------------------------------------------------------------

class Names:
    "Where each public name has its entry"
    def __init__(self, pages):
        self.full, self.doc, taken = {}, {}, given()
        for p in pages:
            for o in p.definitions:
                if not documented(o): continue
                name, full = shown_name(o), f'{p.module}.{shown_name(o)}'
                self.doc[full] = p.doc
                known = self.full.setdefault(name, set())
                if taken.get(name, p.room) == p.room: known.add(full)
        methods = [o for o in self.full if o.startswith('Learner.')]
        for o in methods: self.full.setdefault(o.removeprefix('Learner.'), self.full[o])

    def find(self, text):
        "The full name of what stands in backticks; None for what has none, or several"
        name = re.sub(r'^(learn|base)\.', 'Learner.', text)
        found = self.full.get(name, ())
        return next(iter(found)) if len(found) == 1 and len(text) > 3 else None

    def link(self, m):
        "A name in backticks as a link to its entry"
        full = self.find(m[1])
        return f'{{py:obj}}`{m[1]}{m[2] or ""} <{full}>`' if full else m[0]


def outside_code(text, change):
    "Change a text, but no fenced block and no heading"
    parts = re.split(r'(^```.*?^```|^#[^\n]*$)', text, flags=re.M | re.S)
    return ''.join(o if i % 2 else change(o) for i, o in enumerate(parts))


def linked(text, names):
    "Names in backticks as links"
    return outside_code(text, lambda o: re.sub(r'(?<![`\[\w{}])`([A-Za-z_][\w.]*)(\(\))?`(?![`\]])', names.link, o))


class Targets:
    "Where links between notebooks lead in the site"
    def __init__(self, pages):
        self.docs = {p.path.resolve(): f'/{p.doc}.ipynb' for p in pages}
        self.docs[nbs/'index.ipynb'] = '/index.md'
        self.docs |= {root/v: f'/project/{k}.md' for k, v in files.items()}
        self.docs |= {nbs/k: f'/library/index.md#{anchor(v)}' for k, v in folders.items()}
        self.docs |= {nbs: '/library/index.md', nbs/'methods': '/methods/index.md', root/'README.md': '/index.md'}

    def of(self, target, here):
        "A target in a page of the folder `here`, as the site has it"
        if re.match(r'[a-z]+:|#|/', target): return target
        path, _, to = target.partition('#')
        full = (here/path).resolve()
        if full in self.docs: return self.docs[full] + (f'#{to}' if to else '')
        if full.is_file() and full.suffix in ('.png', '.jpg', '.svg'): return '/images/' + full.name
        raise ValueError(f'{here}: {target} leads to nothing that the site has')

    def put(self, text, here):
        "A text of the folder `here` with its links as the site has them"
        return outside_code(text, lambda o: re.sub(r'\]\(([^)\s]+)\)', lambda m: f']({self.of(m[1], here)})', o))


def anchor(heading): return re.sub(r'[^\w -]', '', heading.lower()).strip().replace(' ', '-')


# --- cells of the site -------------------------------------------------------------------------------------------------------

def markdown_cell(id, text): return dict(cell_type='markdown', id=id, metadata={}, source=text)


def code_cell(id, text, outputs=(), **metadata):
    return dict(cell_type='code', id=id, metadata=metadata, execution_count=None, outputs=list(outputs), source=text)


def shown_outputs(cell):
    "Outputs without warnings, and without what only a running kernel can show"
    for o in cell.outputs:
        if o['output_type'] == 'stream' and o['name'] == 'stderr': continue
        data = {k: v for k, v in o.get('data', {}).items() if 'widget' not in k}
        yield dict(o, data=data) if data else o


def fold_label(cell):
    "What a folded cell holds"
    names = list(dict.fromkeys(shown_name(o) for o in cell.definitions if not (o.owner and o.name.startswith('__'))))
    return 'Imports' if cell.only_imports else f"Source of {', '.join(names[:4])}{' ...' if len(names) > 4 else ''}" if names else 'Source'


def export_cells(cell, page, seen, names):
    "Entries of what an export cell defines, then its source, folded"
    entries = [o for o in cell.definitions if documented(o)]
    texts = [entry(o, page.module, shown_name(o) in seen, lambda text: linked(text, names)) for o in entries]
    seen.update(shown_name(o) for o in entries)
    if texts: yield markdown_cell(f'{cell.id}-api', '\n\n'.join(texts))
    label = dict(code_prompt_show=fold_label(cell), code_prompt_hide=fold_label(cell))
    yield code_cell(cell.id, cell.code, tags=['hide-input'], mystnb=label)


def lesson_cell(cell, heading):
    "A lesson with its outputs, whose pictures say what they belong to"
    alt = f"What the cell above shows ({heading})"
    return code_cell(cell.id, cell.code, shown_outputs(cell), mystnb=dict(image=dict(alt=alt)))


def see_also(page, pages, names):
    "Links to the pages that a page is made of, and to those that use it"
    by_room = {p.room: p for p in pages if p.room}
    link = lambda p: f'[{p.title}](/{p.doc}.ipynb)'
    made = [link(by_room[o]) for o in page.imports() if o in by_room]
    used = [link(p) for p in by_room.values() if page.room in p.imports()]
    here = [o for o in sorted(page.used_in_lessons() & set(given())) if names.find(o)] if not page.room else []
    lines = [f"Made of: {', '.join(made)}."]*bool(made) + [f"Used by: {', '.join(used)}."]*bool(used)
    if here: lines.append('Names used here: ' + ', '.join(f'{{py:obj}}`{o} <{names.find(o)}>`' for o in here) + '.')
    return '```{seealso}\n' + '\n\n'.join(lines) + '\n```' if lines else None


def site_cells(page, pages, names, targets):
    "The cells of a page as the site shows them"
    seen, heading = set(), page.title
    for c in page.cells:
        if c.kind == 'markdown':
            heading = next((o.lstrip('# ') for o in reversed(c.text.splitlines()) if re.match(r'#+ ', o)), heading)
            yield markdown_cell(c.id, targets.put(linked(c.text, names), page.path.parent))
        elif c.exported: yield from export_cells(c, page, seen, names)
        elif c.lesson and c.code: yield lesson_cell(c, heading)
    more = see_also(page, pages, names)
    if more: yield markdown_cell('see-also', more)


def notebook(cells):
    "The JSON of a notebook"
    kernel = dict(name='python3', display_name='Python 3', language='python')
    metadata = dict(kernelspec=kernel, language_info=dict(name='python'))
    return json.dumps(dict(cells=list(cells), metadata=metadata, nbformat=4, nbformat_minor=5))
