"Make README.md from nbs/index.ipynb; `--check` only compares."
import re, sys
from pathlib import Path
import nbformat
from nbconvert import MarkdownExporter

root = Path(__file__).resolve().parent.parent


def readme():
    "The text of README.md: hidden cells and directives gone, links relative to the repository's top"
    nb = nbformat.read(root/'nbs/index.ipynb', as_version=4)
    nb.cells = [c for c in nb.cells if not re.match(r'#\|\s*(hide|default_exp)', c.source)]
    for c in nb.cells: c.source = re.sub(r'^#\|.*\n?', '', c.source, flags=re.M)
    text, _ = MarkdownExporter().from_notebook_node(nb)
    text = re.sub(r'(\]\(|src=")(?!https?:|#)([^)"]+)', lambda m: m[1] + link(m[2]), text)
    return re.sub(r'\n{3,}', '\n\n', text).strip() + '\n'


def link(target):
    "A path as seen from nbs/, as seen from the top"
    return target[3:] if target.startswith('../') else f'nbs/{target}'


if __name__ == '__main__':
    new, old = readme(), root/'README.md'
    if '--check' not in sys.argv: old.write_text(new, encoding='utf-8')
    elif not old.exists() or old.read_text(encoding='utf-8') != new: sys.exit('README.md differs from nbs/index.ipynb: run `make readme`')
