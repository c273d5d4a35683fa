"""Is a FocusNet as accurate whose baseline is remembered as one whose baseline is asked each time? Paired seeds on digits.

    python benchmarks/remembered_accuracy.py
    python benchmarks/remembered_accuracy.py --seeds 10 --markdown results/cpu/remembered_accuracy.md

Each seed has one baseline; all its FocusNets begin with the same weights and see the images in the same order. Without augmentation the remembered logits
are compared with the live ones (whole, and the three strongest); with crops and flips, banks of fixed views with crops that are drawn anew each time. The
differences in accuracy are shown with their mean, its standard error, and the p value of a paired t test. Each result is a line of a file, and what is
there is not trained again: a killed run goes on where it was.
"""
import argparse, json, random, warnings
from pathlib import Path
warnings.filterwarnings('ignore')

def args():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--seeds', type=int, default=6, help='how many (default 6)')
    p.add_argument('--n_train', type=int, default=300, help='training images (default 300)')
    p.add_argument('--epochs', type=int, default=12, help='of each training (default 12)')
    p.add_argument('--out', default='runs/remembered/digits.jsonl', help='file of results (default runs/remembered/digits.jsonl)')
    p.add_argument('--threads', type=int, default=1, help='CPU threads (default 1)')
    p.add_argument('--markdown', help='also write the table to this file')
    return p.parse_args()

# name: what it is compared with, crops and flips?, views (None: drawn anew), settings of `RememberedBaseline` (None: `Baseline`)
arms = {'live, no augmentation': (None, False, None, None),
        'remembered': ('live, no augmentation', False, None, {}),
        'remembered, k = 3': ('live, no augmentation', False, None, dict(k=3)),
        'live, crops drawn anew': (None, True, None, None),
        'remembered, 2 views': ('live, crops drawn anew', True, 2, {}),
        'remembered, 10 views': ('live, crops drawn anew', True, 10, {}),
        'live, 10 views': ('live, crops drawn anew', True, 10, None)}

def main():
    a = args()
    import pandas as pd, torch
    from fastai.vision.all import Learner, Normalize, SGD, accuracy, partial, set_seed
    from scipy.stats import ttest_rel
    from focusnet_fastai.data.digits import digits_dls, digits_stats
    from focusnet_fastai.data.fixed_views import fixed_views
    from focusnet_fastai.data.memory import CropBatch, FlipBatch
    from focusnet_fastai.focusnet import FocusNetCallback
    from focusnet_fastai.models import thin_resnet
    from focusnet_fastai.reference import Baseline
    from focusnet_fastai.remembered import RememberedBaseline
    from common import write_table
    torch.set_num_threads(a.threads)
    out = Path(a.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    setting = [a.n_train, a.epochs]
    done = {(o['arm'], o['seed']): o['accuracy'] for o in map(json.loads, out.read_text().splitlines() if out.exists() else []) if o['setting'] == setting}

    def loaders(seed, crops, views):
        tfms = [CropBatch(pad=3), FlipBatch(.1)] if crops else []
        dls = digits_dls(n_train=a.n_train, seed=seed, bs=32, device='cpu', batch_tfms=[*tfms, Normalize.from_stats(*digits_stats)])
        return fixed_views(dls, views, seed) if views else dls

    def trained(dls, seed, cb=None):
        set_seed(seed)
        dls.train.rng = random.Random(seed)
        learn = Learner(dls, thin_resnet(10, 1), opt_func=partial(SGD, mom=.9), metrics=accuracy)
        with learn.no_bar(), learn.no_logging():
            learn.fit_one_cycle(a.epochs, .1, cbs=cb)
            return learn, learn.validate()[1]

    for seed in range(a.seeds):
        missing = [o for o in arms if (o, seed) not in done]
        if not missing: continue
        bases = {crops: trained(loaders(seed, crops, None), seed)[0].model for crops in {arms[o][1] for o in missing}}
        for name in missing:
            _, crops, views, how = arms[name]
            base = Baseline(bases[crops]) if how is None else RememberedBaseline(bases[crops], **how)
            done[name, seed] = trained(loaders(seed, crops, views), 1000+seed, FocusNetCallback(base))[1]
            with open(out, 'a') as f: f.write(json.dumps(dict(arm=name, seed=seed, setting=setting, accuracy=done[name, seed])) + '\n')
        print(seed, {k: f'{100*done[k, seed]:.1f}' for k in arms}, flush=True)

    rows = {}
    for name, (to, *_) in arms.items():
        acc = pd.Series([100*done[name, s] for s in range(a.seeds)])
        rows[name] = {'accuracy': f'{acc.mean():.2f} +- {acc.std():.2f}', 'difference': '', 'p': ''}
        if not to: continue
        other = pd.Series([100*done[to, s] for s in range(a.seeds)])
        d = acc - other
        p = ttest_rel(acc, other).pvalue if d.any() else 1.
        rows[name] |= {'difference': f'{d.mean():+.2f} +- {d.sem():.2f} to {to} (n = {a.seeds})', 'p': f'{p:.2f}'}
    about = (f'`python benchmarks/remembered_accuracy.py --seeds {a.seeds}`: FocusNet, top-1 accuracy (%) of the last epoch on 797 digits, thin ResNet, {a.n_train} images, {a.epochs} epochs, '
             f'paired seeds, torch {torch.__version__}. Mean +- standard deviation; differences with their standard error.')
    print('\n' + write_table(a.markdown, pd.DataFrame(rows).T, about))

if __name__ == '__main__': main()
