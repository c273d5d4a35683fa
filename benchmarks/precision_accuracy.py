"""Is training in bfloat16 as accurate as in float32? Paired seeds, plain training and FocusNet.

    python benchmarks/precision_accuracy.py --data digits
    python benchmarks/precision_accuracy.py --data cifar10 --n_train 2000 --epochs 15

Each seed trains the same network from the same start on the same batches in both precisions; the differences in accuracy are shown with their mean, its
standard error, and the p value of a paired t test. Runs stand in folders below `--runs` and continue after a kill.
"""
import argparse, warnings
from pathlib import Path
warnings.filterwarnings('ignore')

def args():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--data', default='digits', help='digits or cifar10 (default digits)')
    p.add_argument('--seeds', type=int, default=5, help='how many (default 5)')
    p.add_argument('--n_train', type=int, default=500, help='training images (default 500)')
    p.add_argument('--epochs', type=int, default=10, help='of each training (default 10)')
    p.add_argument('--runs', default='runs/precision', help='folder of the runs (default runs/precision)')
    p.add_argument('--threads', type=int, default=1, help='CPU threads (default 1)')
    p.add_argument('--markdown', help='also write the table to this file')
    return p.parse_args()

def main():
    a = args()
    import pandas as pd, torch
    from fastai.vision.all import Learner, OptimWrapper, accuracy, partial
    from scipy.stats import ttest_rel
    from focusnet_fastai.data.digits import digits_dls
    from focusnet_fastai.data.small import cifar10_dls
    from focusnet_fastai.lab.training import image_subset, Training
    from focusnet_fastai.lab.runs import run
    from focusnet_fastai.models import thin_resnet
    from fastai.vision.all import ParamScheduler, SchedCos, SGD, combined_cos
    from common import write_table
    torch.set_num_threads(a.threads)

    def study(data='digits', n_train=500, epochs=10, precision=None, seed=0):
        "A thin ResNet with momentum and one cycle"
        dls = digits_dls(n_train=n_train, bs=32, device='cpu') if data == 'digits' else image_subset(cifar10_dls(bs=32, device='cpu'), n_train)
        learn = Learner(dls, thin_resnet(dls.c, dls.one_batch()[0].shape[1], width=16), opt_func=partial(SGD, mom=.9), lr=.1, metrics=accuracy)
        return Training(learn.to_precision(precision), epochs, .1, dict(lr=combined_cos(.25, .004, .1, 1e-6)))

    rows = {}
    for method in ('baseline', 'focusnet'):
        acc = {}
        for precision in (None, 'bf16'):
            acc[precision] = [run(study, method, seed, Path(a.runs)/f'{a.data}-{a.n_train}-{a.epochs}'/f'{method}-{precision}-{seed}', log=lambda s: None, data=a.data, n_train=a.n_train,
                                  epochs=a.epochs, precision=precision)['last']['accuracy'] for seed in range(a.seeds)]
            print(method, precision, [f'{100*o:.1f}' for o in acc[precision]], flush=True)
        d = pd.Series(acc['bf16'])*100 - pd.Series(acc[None])*100
        rows[f'{a.data}, {a.n_train} images, {method}'] = {'float32': f'{100*pd.Series(acc[None]).mean():.2f}', 'bf16': f'{100*pd.Series(acc["bf16"]).mean():.2f}',
            'difference': f'{d.mean():+.2f} +- {d.sem():.2f} (n = {a.seeds})', 'p': f'{ttest_rel(acc["bf16"], acc[None]).pvalue:.2f}'}
    print('\n' + write_table(a.markdown, pd.DataFrame(rows).T, f'Top-1 accuracy (%) of the last epoch, {a.epochs} epochs, thin ResNet of width 16, paired seeds, torch {torch.__version__}.'))

if __name__ == '__main__': main()
