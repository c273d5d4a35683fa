"Do all links of a built site lead somewhere, and does it load nothing from elsewhere?"
import re, sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

loading = {'img': ('src', 'srcset'), 'script': ('src',), 'link': ('href',), 'iframe': ('src',), 'source': ('src', 'srcset'),
           'video': ('src',), 'object': ('data',)}
remote = r'(?:url\(|@import )\s*["\']?((?:https?:)?//[^"\')\s]+)'  # in a style sheet
harmless = {'canonical', 'index', 'search', 'next', 'prev', 'author', 'copyright'}  # of <link>: a place to go to, nothing to load


class Reader(HTMLParser):
    "The anchors of a page, where it links to, and what it loads"
    def __init__(self, text):
        super().__init__()
        self.ids, self.links, self.loads = set(), [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = {k: v or '' for k, v in attrs}
        if 'id' in attrs: self.ids.add(attrs['id'])
        if tag == 'a' and 'name' in attrs: self.ids.add(attrs['name'])
        if tag == 'a' and 'href' in attrs: self.links.append(attrs['href'])
        goes = tag == 'link' and set(attrs.get('rel', '').split()) <= harmless
        for key in loading.get(tag, ()):
            if key in attrs: (self.links if goes else self.loads).append(attrs[key])


def elsewhere(url): return bool(re.match(r'(https?:)?//', url))


def read_site(site):
    "The pages of a site; what lies in `_static` are the theme's own parts"
    return {p: Reader(p.read_text(encoding='utf-8')) for p in sorted(site.rglob('*.html')) if '_static' not in p.parts}


def wrong_link(url, page, site, pages):
    "What is wrong with a link inside the site; None: nothing"
    parts = urlsplit(url)
    if parts.scheme: return None
    to = (page.parent/unquote(parts.path)).resolve() if parts.path else page
    if to.is_dir(): to = to/'index.html'
    if site not in to.parents: return 'leads out of the site'
    if not to.is_file(): return 'leads to no file'
    if parts.fragment and to in pages and unquote(parts.fragment) not in pages[to].ids: return 'leads to no place of that page'


def faults(site):
    "A line for each link that leads nowhere and each thing that is loaded from elsewhere"
    site = Path(site).resolve()
    pages = read_site(site)
    for page, o in pages.items():
        name = page.relative_to(site)
        for url in o.loads:
            if elsewhere(url): yield f'{name} loads {url}'
        for url in [*o.links, *o.loads]:
            if elsewhere(url) or url.startswith(('data:', 'mailto:')): continue
            wrong = wrong_link(url, page, site, pages)
            if wrong: yield f'{name}: {url} {wrong}'
    for p in site.rglob('*.css'):
        for url in re.findall(remote, p.read_text(encoding='utf-8')): yield f'{p.relative_to(site)} loads {url}'


def external(site): return sorted({url for o in read_site(Path(site)).values() for url in o.links if elsewhere(url)})


if __name__ == '__main__':
    bad = list(faults(sys.argv[1]))
    if bad: sys.exit('\n'.join(bad))
    print('All links lead somewhere, nothing is loaded from elsewhere. Links to elsewhere:', *external(sys.argv[1]), sep='\n  ')
