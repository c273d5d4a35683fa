"Make the site: notebooks to pages, the gallery, llms.txt; then Sphinx, with warnings as errors; then every link is followed."
import argparse, shutil, subprocess, sys
from pathlib import Path
from check import external, faults
from gallery import draw_all, page_text, registry
from pages import Names, Targets, files, folders, given, linked, nbs, notebook, read_pages, root, row, site_cells

here = Path(__file__).resolve().parent
sys.path.insert(0, str(root))  # the gallery draws with the package as it is here


def toctree(*docs, **options):
    "A list of pages for the navigation"
    lines = [f':{k}: {v}'.rstrip() for k, v in options.items()]
    return '\n'.join(['```{toctree}', *lines, '', *docs, '```'])


def about(p): return f'- [{p.title}](/{p.doc}.ipynb): {p.about}'


def of_folder(pages, folder):
    "The pages of a layer, in the order of reading"
    return [p for p in pages if p.room and (p.path.parent.name if p.path.parent != nbs else 'core') == folder]


def front(pages, names, targets):
    "The front door: README with the navigation"
    page = next(p for p in pages if p.doc == 'index')
    text = '\n\n'.join(targets.put(linked(c.text, names), nbs) for c in page.cells if c.kind == 'markdown')
    places = dict(Tutorials='tutorials/index', Methods='methods/index', Results='results',
                  Library='library/index', Names='names', Project='project/index')
    return text + '\n\n' + toctree(*(f'{k} <{v}>' for k, v in places.items()), hidden='')


def library(pages):
    "The list of all modules, layer by layer"
    text = ['# Library', 'Every page is a notebook that explains, tests and *is* the source of its module.',
            'Layers use earlier ones only, in this order.']
    for folder, title in folders.items():
        members = of_folder(pages, folder)
        text += [f'## {title}', '\n'.join(map(about, members))]
        if folder != 'methods': text.append(toctree(*(f'/{p.doc}' for p in members), hidden='', caption=title))
    return '\n\n'.join(text) + '\n'


def tutorial_pages(pages):
    "The tutorials, in the order in which the front door names them"
    text = '\n'.join(c.text for p in pages if p.doc == 'index' for c in p.cells)
    return sorted((p for p in pages if p.doc.startswith('tutorials/')), key=lambda p: text.find(p.path.name))


def tutorials(pages):
    "The list of the tutorials"
    members = tutorial_pages(pages)
    return '\n\n'.join(['# Tutorials', '\n'.join(map(about, members)), toctree(*(f'/{p.doc}' for p in members), hidden='')]) + '\n'


def name_row(name, names, titles):
    "A name and the page that has its entry"
    full = names.find(name)
    doc = names.doc[full]
    return row(f'{{py:obj}}`{name} <{full}>`', f'[{titles[doc]}](/{doc}.ipynb)')


def all_names(pages, names):
    "The names that the star import gives, and the methods of `Learner`"
    titles = {p.doc: p.title for p in pages}
    listed = sorted(given(), key=str.lower) + sorted(o for o in names.full if o.startswith('Learner.'))
    table = ['| name | page |', '| --- | --- |', *(name_row(o, names, titles) for o in listed if names.find(o))]
    said = ("What `from focusnet_fastai.all import *` gives, and the methods that it adds to fastai's `Learner`. "
            'The {ref}`index <genindex>` has everything else.')
    return '\n\n'.join(['# Names', said, '\n'.join(table)]) + '\n'


def project(targets):
    "CONTRIBUTING, CHANGELOG and their like"
    yield 'index', '# Project\n\nHow to take part, what changed, what is safe to load, and how a release is made.\n\n' + toctree(*files)
    for name, path in files.items(): yield name, targets.put((root/path).read_text(encoding='utf-8'), root)


def llms(pages):
    "A map of the site for language models (llmstxt.org)"
    page = next(p for p in pages if p.doc == 'index')
    link = lambda p: f'- [{p.title}]({p.doc}.html): {p.about}'
    groups = {'Tutorials': tutorial_pages(pages), 'Results': [p for p in pages if p.doc == 'results']}
    groups |= {title: of_folder(pages, folder) for folder, title in folders.items()}
    example = next(c.text for c in page.cells if c.id == 'example')
    parts = [f'# {page.title}', f'> {page.about}', example, *(f'## {k}\n\n' + '\n'.join(map(link, v)) for k, v in groups.items())]
    return '\n\n'.join(parts) + '\n'


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding='utf-8')


def write_source(out, pictures=True):
    "All pages, as Sphinx reads them"
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(nbs/'images', out/'images', ignore=shutil.ignore_patterns('*.txt'))
    pages = read_pages()
    names, targets = Names(pages), Targets(pages)
    for p in pages:
        if p.doc != 'index': write(out/f'{p.doc}.ipynb', notebook(site_cells(p, pages, names, targets)))
    drawn = draw_all(out/'images/methods') if pictures else {}
    methods = of_folder(pages, 'methods')
    gallery = page_text(next(p for p in methods if p.room == registry), names, drawn)
    write(out/'methods/index.md', gallery + '\n' + toctree(*(f'/{p.doc}' for p in methods), hidden='', caption='Pages of the methods'))
    texts = {'index': front(pages, names, targets), 'library/index': library(pages),
             'tutorials/index': tutorials(pages), 'names': all_names(pages, names)}
    for name, text in texts.items(): write(out/f'{name}.md', text)
    for name, text in project(targets): write(out/f'project/{name}.md', text)
    write(out/'llms.txt', llms(pages))


def main():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument('--no-pictures', action='store_true', help="leave out the gallery's pictures, which need PyTorch")
    p.add_argument('--no-html', action='store_true', help='only make the pages')
    a = p.parse_args()
    source, site = here/'_source', here/'_build'
    write_source(source, not a.no_pictures)
    if a.no_html: return
    shutil.rmtree(site, ignore_errors=True)
    options = ['-q', '-W', '--keep-going', '-b', 'html', '-c', here, '-d', here/'_build.doctrees']
    done = subprocess.run([sys.executable, '-m', 'sphinx', *map(str, options), str(source), str(site)])
    if done.returncode: sys.exit(done.returncode)
    bad = list(faults(site))
    if bad: sys.exit('\n'.join(bad))
    n = len(list(site.rglob('*.html')))
    print(f'The site is in {site}: {n} pages. Links to elsewhere (not followed):', *external(site), sep='\n  ')


if __name__ == '__main__': main()
