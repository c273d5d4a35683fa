"Hand the facts of settings.ini to setuptools (see the note in pyproject.toml)."
import re
from configparser import ConfigParser
from pathlib import Path
from setuptools import setup, find_packages

here = Path(__file__).parent
parser = ConfigParser(delimiters=['='], interpolation=None)
parser.read(here/'settings.ini', encoding='utf-8')
cfg = parser['DEFAULT']
extras = {k.removesuffix('_requirements'): v.split() for k, v in cfg.items() if k.endswith('_requirements')}
statuses = ['1 - Planning', '2 - Pre-Alpha', '3 - Alpha', '4 - Beta', '5 - Production/Stable']


def description():
    "README; with the repository's address, links and pictures that are relative to it become whole"
    readme = here/'README.md'
    text = readme.read_text(encoding='utf-8') if readme.exists() else ''
    if not cfg['url']: return text
    kind = lambda target: 'raw' if target.endswith(('.png','.jpg')) else 'blob'
    return re.sub(r'(\]\()(?!https?:|#)([^)]+)', lambda m: f"{m[1]}{cfg['url']}/{kind(m[2])}/main/{m[2]}", text)


setup(
    name=cfg['lib_name'], version=cfg['version'], description=cfg['description'], keywords=cfg['keywords'].split(),
    author=cfg['author'], license_expression=cfg['license'], python_requires=f">={cfg['min_python']}",
    long_description=description(), project_urls={'Source': cfg['url']} if cfg['url'] else {},
    long_description_content_type='text/markdown',
    classifiers=[f"Development Status :: {statuses[int(cfg['status'])-1]}", 'Programming Language :: Python :: 3',
                 *(f'Programming Language :: Python :: 3.{o}' for o in range(10, 14)),
                 'Intended Audience :: Science/Research', 'Topic :: Scientific/Engineering :: Artificial Intelligence'],
    packages=find_packages(include=[cfg['lib_name'], f"{cfg['lib_name']}.*"]),
    install_requires=cfg['requirements'].split(), extras_require=extras,
    entry_points={'console_scripts': cfg['console_scripts'].split(),
                  'nbdev': [f"{cfg['lib_name']}={cfg['lib_name']}._modidx:d"]},
)
