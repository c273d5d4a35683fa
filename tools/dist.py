"""Build the source archive and the wheel into dist/, check their metadata and what is in them, and tell their size.

Run it in the project's environment (needs the release requirements): python tools/dist.py"""
import re, shutil, subprocess, sys, tarfile, zipfile
from pathlib import Path

root = Path(__file__).resolve().parent.parent
unwanted = r'(^|/)(tests|nbs|docs|results|benchmarks|tools|models)/|\.(ipynb|png|jpg|pth|pkl|csv|gz|html)$|(^|/)(__pycache__|\.git|\.venv)'


def contents(archive):
    "The files of an archive, without the folder that a source archive has around them"
    if str(archive).endswith('.whl'): return zipfile.ZipFile(archive).namelist()
    with tarfile.open(archive) as f: return [o.name.partition('/')[2] for o in f.getmembers() if o.isfile()]


def surplus(names): return sorted(o for o in names if re.search(unwanted, o))


def missing(names):
    "Modules of the package that an archive lacks"
    here = {str(o.relative_to(root)) for o in (root/'focusnet_fastai').rglob('*.py')}
    return sorted(here - set(names))


def check(archive):
    "End with a sentence unless an archive holds the package and nothing else"
    names = contents(archive)
    for what, found in (('holds what does not belong there', surplus(names)), ('lacks', missing(names))):
        if found: sys.exit(f"{archive.name} {what}: {', '.join(found[:10])}")
    print(f'{archive.name}: {len(names)} files, {archive.stat().st_size/1000:.0f} kB')


def build(out):
    "Both archives, in `out`; what an earlier build has left behind is not taken over"
    for o in ('build', 'focusnet_fastai.egg-info'): shutil.rmtree(root/o, ignore_errors=True)
    subprocess.run([sys.executable, '-m', 'build', '--outdir', out, root], check=True, stdout=subprocess.DEVNULL)
    return sorted(out.iterdir())


if __name__ == '__main__':
    out = root/'dist'
    shutil.rmtree(out, ignore_errors=True)
    archives = build(out)
    subprocess.run([sys.executable, '-m', 'twine', 'check', '--strict', *archives], check=True)
    for o in archives: check(o)
