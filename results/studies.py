"""The measurements behind nbs/results.ipynb: every row is one `focusnet-run` command, and this script runs them all.

    python results/studies.py --list               # the commands, one a row
    python results/studies.py mnist-1000 cifar-2000 # some studies, seed after seed; what is finished is not run again
    python results/studies.py --warm mnist-1000     # then: sizes of the multi-warm label, from the weights of the baselines
    python results/studies.py --pairs mnist-full    # errors in the pairs of classes that the baseline confuses most, from the weights
    python results/studies.py gpu --copy out        # on a GPU, in the order of the list; runs are packed into `out` as soon as they are finished
    python results/studies.py gpu --try             # the same rows on any machine: one epoch, 64 images, in a temporary folder
    python results/studies.py gpu --time            # after the runs: seconds an epoch, images/s, and the share that the loaders take

A study holds what the paper's claims need: the baseline, the baseline trained as long as both stages together, label smoothing, knowledge distillation,
FocusNet with both warm rules and with the settings chosen on other seeds, the ablation of Table 10, baselines of rising quality (Figure 4) and poorly trained ones (Table 9). Weights stay on the machine
(.gitignore). `focusnet-pack results/cpu/mnist-1000 --remove` leaves two files of a study, with the configuration, the curves and the result of each run; what is packed is
not run again.
"""
import argparse, json, os, shlex, sys, tempfile, time, warnings
from pathlib import Path
os.environ.setdefault('OMP_NUM_THREADS', '1')
warnings.filterwarnings('ignore')

here = Path(__file__).resolve().parent


def arms(epochs, **settings):
    "The rows that every study has: (method, settings, settings of its baseline)"
    s = dict(settings, epochs=epochs)
    return [('baseline', s, None), ('baseline', dict(s, epochs=2*epochs), None), ('label_smoothing', s, None), ('kd', s, None),
            ('focusnet', s, None), ('focusnet', dict(s, rule='released'), None), ('focusnet', dict(s, rule='released', alpha=.5), None)]


def ablation(epochs, **settings):
    "Table 10: without one or both of the added terms"
    s = dict(settings, epochs=epochs)
    return [('focusnet', dict(s, alpha=0., beta=0.), None), ('focusnet', dict(s, alpha=0.), None), ('focusnet', dict(s, beta=0.), None)]


def quality(epochs, poor, **settings):
    "Figure 4: FocusNet against baselines of fewer epochs"
    s = dict(settings, epochs=epochs)
    return [('focusnet', s, dict(epochs=e)) for e in poor]


def poor_teacher(epochs, **settings):
    "Table 9: a teacher of one epoch, for pure distillation, for the usual mixture, and for FocusNet"
    s = dict(settings, epochs=epochs)
    return [(m, s, dict(epochs=1)) for m in ('de_reverse_kd', 'kd', 'focusnet')]


mnist = dict(data='mnist', n_valid=4000)
cifar = dict(data='cifar10', net='small_cnn', n_train=2000, n_valid=4000, bs=32)
studies = { # folder below `results`: recipe, seeds, rows
    'cpu/digits-200': ('digits', range(10), arms(30, n_train=200) + ablation(30, n_train=200)),
    'cpu/mnist-1000': ('modern', range(5), arms(6, n_train=1000, bs=32, **mnist) + quality(6, (1, 2, 4), n_train=1000, bs=32, **mnist)
                       + poor_teacher(6, n_train=1000, bs=32, **mnist)),
    'cpu/mnist-5000': ('modern', range(5), arms(5, n_train=5000, **mnist)),
    'cpu/mnist-all':  ('modern', range(5), arms(1, bs=128, data='mnist')),
    'cpu/cifar-2000': ('modern', range(5), arms(15, **cifar) + ablation(15, **cifar)),
    'cpu/mnist-full': ('mnist', range(3), [(m, dict(channels_last=True), None) for m in ('baseline', 'dropmax', 'focusnet')]), # Table 2: seven hours of one core
}
# what advice was chosen on: other seeds than those that are reported
choice = [('focusnet', dict(n_train=200, epochs=30, alpha=a, beta=b, rule=r), None) for r in ('positive', 'released') for a, b in ((1., 1.), (1., .5), (.5, 1.), (.5, .5), (.5, .25))]
studies['choice/digits-200'] = ('digits', range(100, 105), [('baseline', dict(n_train=200, epochs=30), None), *choice])

# where a GPU is at hand, in this order; Section 4.2's schedules
gpu = dict(precision='bf16', channels_last=True)
three = [('baseline', gpu, None), ('focusnet', gpu, None), ('focusnet', dict(gpu, rule='released'), None)]
dogs = dict(gpu, size=128)
studies |= {
    'gpu/cifar10':   ('cifar10', range(3), three),
    'gpu/imagewoof': ('imagewoof', range(3), [(m, dict(s, size=128), b) for m, s, b in three]
                      + [(m, dict(dogs, net='mobilenet_v2'), b) for m, b in (('baseline', None), ('focusnet', dict(net='resnet18')), ('kd', dict(net='resnet18')))]),
    'gpu/tiny':      ('tiny_imagenet', range(3), three),
    'gpu/cifar10+methods': ('cifar10', range(3), [(m, gpu, None) for m in ('kd', 'cs_kd', 'frskd', 'focus_frskd')]),
}


def folder(name):
    "Studies that differ after a plus share their baselines"
    return name.split('+')[0]


def command(name, method, settings, base):
    "The same as a shell command"
    recipe, seeds, _ = studies[name]
    pairs = lambda d: ' '.join(shlex.quote(f"{k}={v if isinstance(v, str) else json.dumps(v, separators=(',', ':'))}") for k, v in d.items())
    return (f"focusnet-run {recipe} {method} --seeds {' '.join(map(str, seeds))} --folder results/{folder(name)} --set {pairs(settings)}"
            + (f" --base {pairs(base)}" if base else ''))


def run_study(name, root=here, small=None, copy=None):
    "All rows of a study, seed after seed; `small` settings replace those of the rows"
    from focusnet_fastai.lab.runs import run_seeds
    from focusnet_fastai.lab.study import pack_runs
    recipe, seeds, rows = studies[name]
    for seed in [seeds[0]] if small else seeds:
        for method, settings, base in rows:
            res = run_seeds(recipe, method, [seed], root/folder(name), base=base, log=lambda s: 'epochs in' in s and print(s, flush=True), **{**settings, **(small or {})})
            if small: print(f"  {res[0]['last']['accuracy']:.3f}", flush=True)
            if copy: pack_runs(root/folder(name), Path(copy)/folder(name))


def timing(name):
    "Seconds an epoch of the finished runs, and the share that an epoch of the loaders alone takes"
    import pandas as pd
    from focusnet_fastai.lab.config import get_recipe
    from focusnet_fastai.lab.paper import results
    df = results(here/folder(name))
    dl = get_recipe(studies[name][0])(**{k: v for k, v in studies[name][2][0][1].items()}).learn.dls.train
    for _ in range(2):
        start = time.perf_counter()
        n = sum(len(b[0]) for b in dl)
        loading = time.perf_counter() - start
    g = df[df.finished].groupby('method').images_per_second.median().rename('images_per_second').to_frame()
    g['seconds_per_epoch'] = n/g.images_per_second
    g['share_of_loading'] = loading/g.seconds_per_epoch
    g.round(3).to_csv(here/folder(name)/'timing.csv')
    print(g.round(3))


def warm_labels(name):
    "Sizes of the multi-warm label on the training images, for the trained baselines of a study"
    import pandas as pd
    from fastai.vision.all import noop
    from focusnet_fastai.lab.study import read_about
    from focusnet_fastai.lab.config import get_recipe
    from focusnet_fastai.loss import warm_summary
    from focusnet_fastai.reference import load_weights
    rows = []
    for path in sorted((here/folder(name)).glob('*/config.json')):
        cfg = read_about(path.parent)['config']
        if cfg['method'] != 'baseline' or not (path.parent/'weights.pth').exists(): continue
        learn = get_recipe(cfg['recipe'])(**cfg['recipe_settings']).learn
        learn.model = load_weights(path.parent/'weights.pth', learn.model)
        learn.model.to(learn.dls.device)
        with learn.no_bar(), learn.no_logging(): z, y = learn.get_preds(dl=learn.dls.valid.new(learn.dls.train_ds, shuffle=False), act=noop)
        acc = (z.argmax(1) == y).float().mean().item()
        rows += [dict(seed=cfg['seed'], epochs=cfg['recipe_settings']['epochs'], rule=r, images=len(y), train_accuracy=round(acc, 4),
                      **{k: round(v, 4) for k, v in warm_summary(z, y, r).items()}) for r in ('positive', 'released')]
    if rows: pd.DataFrame(rows).to_csv(here/folder(name)/'warm.csv', index=False)
    print(f'{name}: {len(rows)//2} baselines')


def confused(name, n=20):
    "Errors of each run, and those in the `n` pairs of classes that the baseline of its seed confuses most"
    import pandas as pd
    from fastai.vision.all import noop
    from focusnet_fastai.lab.config import get_recipe
    from focusnet_fastai.lab.study import read_run
    from focusnet_fastai.methods.registry import deployed_network, methods
    from focusnet_fastai.reference import load_weights
    from regimes import confused_pairs, in_pairs
    runs = [read_run(o.parent) for o in sorted((here/folder(name)).glob('*/weights.pth'))]
    rows, pairs = [], {}
    for run in sorted(runs, key=lambda o: (o.config['seed'], o.config['method'] != 'baseline', o.config['method'])):
        cfg = run.config
        learn = get_recipe(cfg['recipe'])(**cfg['recipe_settings']).learn
        learn.model = load_weights(run.folder/'weights.pth', deployed_network(methods[cfg['method']], learn, **cfg['method_settings']))
        learn.model.to(learn.dls.device)
        with learn.no_bar(), learn.no_logging(): z, y = learn.get_preds(act=noop)
        if cfg['method'] == 'baseline': pairs[cfg['seed']] = confused_pairs(z, y, n)
        rows.append(dict(seed=cfg['seed'], method=cfg['method'], errors=(z.argmax(1) != y).sum().item(), in_pairs=in_pairs(z, y, pairs[cfg['seed']])))
    if rows: pd.DataFrame(rows).to_csv(here/folder(name)/'pairs.csv', index=False)
    print(f'{name}: {len(rows)} runs')


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('names', nargs='*', help=f"studies, or a part of their names; default: all but those for a GPU, of {', '.join(studies)}")
    p.add_argument('--list', action='store_true', help='print the commands and run nothing')
    p.add_argument('--warm', action='store_true', help='measure the multi-warm labels of the baselines that are there')
    p.add_argument('--pairs', action='store_true', help='count the errors in the most confused pairs of classes, from the weights that are there')
    p.add_argument('--try', dest='small', action='store_true', help='one epoch of 64 images a row, in a temporary folder')
    p.add_argument('--time', action='store_true', help='seconds an epoch and the share of the loaders, of runs that are there')
    p.add_argument('--copy', help='a folder for the packed runs, written after each')
    a = p.parse_args()
    names = [n for n in studies if (not a.names and not n.startswith('gpu')) or any(o in n for o in a.names)]
    if not names: sys.exit(f"No study is called {' '.join(a.names)}: choose from {', '.join(studies)}")
    if a.list: return print('\n'.join(command(n, *row) for n in names for row in studies[n][2]))
    import torch
    torch.set_num_threads(1)
    if a.small:
        with tempfile.TemporaryDirectory() as tmp:
            for n in names: run_study(n, Path(tmp), dict(epochs=1, n_train=64, n_valid=64, bs=16, precision=None))
        return
    for n in names:
        if a.warm: warm_labels(n)
        elif a.pairs: confused(n)
        elif a.time: timing(n)
        else: run_study(n, copy=a.copy)


if __name__ == '__main__': main()
