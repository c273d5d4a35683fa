"Sphinx's settings; `make docs` makes the pages (build.py) and the site"
import configparser, re
from pathlib import Path
from latex2mathml.converter import convert

root = Path(__file__).resolve().parent.parent
cfg = configparser.ConfigParser(delimiters=['='], interpolation=None)
cfg.read(root/'settings.ini', encoding='utf-8')
cfg = cfg['DEFAULT']

project, author, release = cfg['lib_name'], cfg['author'], cfg['version']
copyright = f"2026 onwards, {author}"
extensions = ['myst_nb']
myst_enable_extensions = ['dollarmath', 'colon_fence']
myst_heading_anchors = 4
# The notebooks bring their outputs; no widget's script is fetched from elsewhere
nb_execution_mode, nb_ipywidgets_js, nb_render_markdown_format, nb_merge_streams = 'off', {}, 'myst', True
add_module_names, python_maximum_signature_line_length = False, 100
python_display_short_literal_types = True

html_theme = 'pydata_sphinx_theme'
html_title, html_favicon, html_context = project, '_static/icon.svg', dict(default_mode='auto')
html_static_path, html_css_files = ['_static'], ['site.css']
html_extra_path = ['_source/llms.txt']
html_show_sourcelink, html_copy_source = False, False
html_theme_options = dict(logo=dict(text=project), navbar_align='left', show_toc_level=2, navigation_with_keys=False,
                          secondary_sidebar_items=['page-toc'], footer_start=['copyright'], footer_end=[],
                          navbar_end=['theme-switcher'], back_to_top_button=False,
                          pygments_light_style='friendly', pygments_dark_style='monokai')
html_sidebars = {'index': [], 'results': [], 'names': []}
html_math_renderer = 'mathml'


def mathml(text, **kw):
    "A formula as MathML, which browsers draw themselves; words of several letters, such as KL, stand upright"
    words = re.sub(r'(?<![\\A-Za-z])(?<!begin\{)(?<!end\{)(?<!rm\{)(?<!text\{)([A-Za-z]{2,})', r'\\mathrm{\1}', text)
    return convert(words, **kw)


def inline(self, node):
    "A formula in a line"
    from docutils import nodes
    self.body.append(mathml(node.astext()))
    raise nodes.SkipNode


def block(self, node):
    "A formula in lines of its own"
    from docutils import nodes
    self.body.append(f'<div class="math">{mathml(node.astext(), display="block")}</div>')
    raise nodes.SkipNode


def setup(app): app.add_html_math_renderer('mathml', inline_renderers=(inline, None), block_renderers=(block, None))
