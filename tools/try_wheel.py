"""Install the wheel of dist/ in an empty environment of each Python that is named, and use it from there, far from this folder.

    python tools/try_wheel.py python3.10 python3.13
    python tools/try_wheel.py --beside SITE_PACKAGES python3.13   # PyTorch and fastai are taken from there, and not downloaded
"""
import argparse, os, re, subprocess, sys, tempfile
from pathlib import Path

root = Path(__file__).resolve().parent.parent
star = """
import focusnet_fastai, sys
from fastai.vision.all import *
from focusnet_fastai.all import *
assert 'site-packages' in focusnet_fastai.__file__, focusnet_fastai.__file__
set_seed(0)
base,learn = digit_learners(n_train=100, n_epoch=4)
learn.show_fixed(base).savefig('fixed.png')
print(focusnet_fastai.__version__, learn.compare(base).df.accuracy.to_dict())
"""


def commands():
    "The commands that settings.ini names"
    text = (root/'settings.ini').read_text(encoding='utf-8')
    return re.findall(r'([\w-]+)=focusnet_fastai\.', text)


def run(*args, **kw):
    "Run something that must succeed; its output"
    env = {k: v for k, v in os.environ.items() if k not in ('PYTHONPATH', 'PYTHONHOME')}
    env |= dict(MPLBACKEND='agg', OMP_NUM_THREADS='1', PYTHONWARNINGS='ignore')
    out = subprocess.run(list(map(str, args)), capture_output=True, text=True, env=env, **kw)
    if out.returncode: sys.exit(f"{' '.join(map(str, args))[:200]} failed:\n{out.stdout[-2000:]}{out.stderr[-4000:]}")
    return out.stdout


def environment(python, folder, wheel, beside=None):
    "An environment with nothing but the wheel and what it needs; its folder of commands"
    run(python, '-m', 'venv', folder)
    bin = folder/('Scripts' if os.name == 'nt' else 'bin')
    if beside:
        own = Path(run(bin/'python', '-c', 'import sysconfig; print(sysconfig.get_path("purelib"))').strip())
        (own/'beside.pth').write_text(f'{beside}\n', encoding='utf-8')
    run(bin/'python', '-m', 'pip', 'install', '-q', '--disable-pip-version-check', *(['--no-deps'] if beside else []), wheel)
    return bin


def use(bin, folder):
    "Star import and a plot, the help of each command, the demo"
    print('  ' + run(bin/'python', '-c', star, cwd=folder).strip().splitlines()[-1])
    assert (folder/'fixed.png').stat().st_size > 5000
    for name in commands(): assert 'usage' in run(bin/name, '--help', cwd=folder), name
    print(f"  {len(commands())} commands explain themselves")
    said = run(bin/'focusnet-demo', '--seeds', '2', '--n-train', '100', '--epochs', '8', cwd=folder)
    assert 'Verdict' in said and (folder/'focusnet-demo.png').exists()
    print('  the demo runs')


if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('pythons', nargs='+')
    p.add_argument('--beside', help='site-packages of another environment of the same Python, which has the dependencies')
    a = p.parse_args()
    wheels = list((root/'dist').glob('*.whl'))
    if len(wheels) != 1: sys.exit('There must be one wheel in dist: run `make dist` first')
    for python in a.pythons:
        with tempfile.TemporaryDirectory() as tmp:
            print(f'{python}: {run(python, "--version").strip()}', flush=True)
            use(environment(python, Path(tmp)/'env', wheels[0], a.beside), Path(tmp))
