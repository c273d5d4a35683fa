"""Does a probe of seconds on a trained baseline's own features say which setting will help a whole training?

    python results/probe.py FOLDER     # after results/regimes.py and results/pretrained.py; what is probed is not probed again
    python results/probe.py FOLDER --seeds 0 # some seeds
    python results/probe.py FOLDER --table results/cpu/probe.md

For each finished baseline: the features before its last layer, of its training images and of its validation images (up to 4,000), and on
each of both new linear heads, by plain cross-entropy and by every setting, cross-validated in three parts (FocusNet's baseline is the
plain head of the same part). The gain of the heads is compared with the gain of the whole trainings (measures.jsonl of the studies): does
at least its sign agree?
"""
import argparse, json, os, time, warnings
os.environ.setdefault('OMP_NUM_THREADS', '1')
warnings.filterwarnings('ignore')
import torch
from fastai.vision.all import *
from scipy.stats import spearmanr
from focusnet_fastai.methods.registry import apply_method, methods
import pretrained, regimes

here = Path(__file__).resolve().parent
ARMS = {k: regimes.ARMS[k] for k in ('label_smoothing', 'ols', 'focusnet', 'released', 'soft', 'focus_class')}
EPOCHS, LR, BS, PARTS = 20, 2e-3, 128, 3


@torch.no_grad()
def features(learn, x_y):
    "What enters the last Linear layer `(N,F)`, standardised, and the labels"
    last, kept, labels = [m for m in learn.model.modules() if isinstance(m, nn.Linear)][-1], [], []
    hook = last.register_forward_pre_hook(lambda m, args: kept.append(args[0].float()))
    learn.model.eval()
    for x, y in x_y:
        learn.model(x.as_subclass(Tensor))
        labels.append(y.as_subclass(Tensor))
    hook.remove()
    z = torch.cat(kept)
    return (z-z.mean(0))/(z.std(0)+1e-6), torch.cat(labels).long()


def plain_batches(dls, dl, n=4000):
    "At most `n` images as they are in validation"
    return dls.valid.new(dl.dataset if len(dl.dataset)<=n else some(dl.dataset, n), bs=256, shuffle=False)


def some(ds, n):
    "Images spread evenly over a data set in memory"
    i = torch.linspace(0, len(ds)-1, n).long()
    return type(ds)(ds.x[i], ds.y[i], ds.vocab)


def head(z, y, train, valid, n_classes, arm='ce', base=None, seed=0):
    "A linear head on features: the learner and its accuracy on the part that it has not seen, in percent"
    set_seed(seed)
    sets = [torch.utils.data.TensorDataset(z[i], y[i]) for i in (train, valid)]
    dl = lambda o, bs, training: pretrained.FeatureDL(o, bs=bs, shuffle=training, drop_last=training, num_workers=0)
    dls = DataLoaders(dl(sets[0], min(BS, len(train)), True), dl(sets[1], 4096, False))
    dls.c, dls.vocab = n_classes, list(range(n_classes))
    learn, cbs = Learner(dls, nn.Linear(z.shape[1], n_classes), loss_func=CrossEntropyLossFlat(), wd=.01), []
    if arm!='ce':
        method, own, _ = ARMS[arm]
        learn, cbs = apply_method(methods[method], learn, base, **own)
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(EPOCHS, LR, cbs=cbs)
    with torch.no_grad(): right = learn.model.eval()(z[valid]).argmax(1)==y[valid]
    return learn, 100*right.float().mean().item()


def gains(z, y, n_classes, seed):
    "Gain of each setting over plain cross-entropy, in points, mean of the parts"
    order, found = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed)), {k: [] for k in ARMS}
    for i in range(PARTS):
        valid = order[i::PARTS]
        train = order[~torch.isin(order, valid)]
        base, plain = head(z, y, train, valid, n_classes, seed=seed)
        for arm in ARMS: found[arm].append(head(z, y, train, valid, n_classes, arm, base, seed)[1]-plain)
    return {k: np.mean(v) for k, v in found.items()}


def probed(study, regime, seed, root):
    "A line of the file for each kind of images, or none if there is no such baseline"
    run = regimes.finished(regime, root, study.REGIMES, dict(ce=study.ARMS['ce'])).get(('ce', seed))
    if run is None: return []
    set_seed(seed)
    recipe, rows = study.REGIMES[regime][0], []
    learn = recipe(**merge(run.config['recipe_settings'], regimes.all_counted(recipe))).learn
    learn.model.load_state_dict(torch.load(run.folder/'weights.pth', weights_only=True))
    for images, dl in (('training', learn.dls.train), ('others', learn.dls.valid)):
        start, (z, y) = time.perf_counter(), features(learn, plain_batches(learn.dls, dl))
        found = gains(z, y, learn.dls.c, seed)
        rows.append(dict(regime=regime, seed=seed, images=images, n=len(y), seconds=time.perf_counter()-start, **found))
    return rows


def measured():
    "Mean gain of whole trainings by regime and setting"
    rows = [json.loads(o) for f in ('regimes', 'pretrained') for o in (here/'cpu'/f/'measures.jsonl').read_text().splitlines()]
    ce = {(o['regime'], o['seed']): o['accuracy'] for o in rows if o['arm']=='ce'}
    res = {}
    for o in rows:
        arm = 'focus_class' if (o['regime'], o['arm'])==('whole', 'focus_class_all') else o['arm']
        res.setdefault((o['regime'], arm), []).append(o['accuracy']-ce[o['regime'], o['seed']])
    return {k: v for k, v in res.items() if k[1] in ARMS}


def table(rows):
    "Gains of heads beside those of whole trainings, and how often their signs agree where the whole ones are clear"
    whole, text = measured(), []
    lines = ['| regime | setting | whole training | heads, training images | heads, other images |', '| --- | --- | --- | --- | --- |']
    mean = lambda regime, arm, images: np.mean([o[arm] for o in rows if (o['regime'], o['images'])==(regime, images)] or [np.nan])
    sure = lambda v: len(v)>1 and abs(np.mean(v))>2*np.std(v, ddof=1)/len(v)**.5
    found = [(k, arm, np.mean(v), sure(v), mean(k, arm, 'training'), mean(k, arm, 'others'))
             for (k, arm), v in whole.items() if any(o['regime']==k for o in rows)]
    for k, arm, w, clear, a, b in found: lines.append(f"| {k} | {arm} | {w:+.2f}{' *' if clear else ''} | {a:+.2f} | {b:+.2f} |")
    for name, i in (('training images', 4), ('other images', 5)):
        clear = [o for o in found if o[3]]
        agree = sum((o[2]>0)==(o[i]>0) for o in clear)
        text.append(f"Heads on features of {name}: the sign is that of the whole training in {agree} of {len(clear)} clear cases, "
                    f"rank correlation over all {len(found)} {spearmanr([o[2] for o in found], [o[i] for o in found])[0]:+.2f}.")
    clear = [o for o in found if o[3]]
    text.append(f"Whoever always says 'it helps' agrees in {sum(o[2]>0 for o in clear)} of {len(clear)}.")
    return '\n'.join([*lines, '', 'Gains over plain cross-entropy in points; * more than two standard errors from 0.', '', *text])


if __name__=='__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('folder', type=Path)
    parser.add_argument('--seeds', type=int, nargs='+', default=range(3))
    parser.add_argument('--regimes', nargs='+', default='digits cifar10 cifar10-short gtsrb gtsrb-short cifar100 tiny whole'.split())
    parser.add_argument('--table', type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    root = args.folder.resolve()/'runs'
    kept = here/'cpu'/'probe.jsonl'
    rows = [json.loads(o) for o in kept.read_text().splitlines()] if kept.exists() else []
    if args.table: print(args.table.write_text(table(rows)+'\n'), table(rows))
    else:
        for study in (regimes, pretrained): study.set_folder(args.folder.resolve())
        for seed in args.seeds:
            for regime in args.regimes:
                if any((o['regime'], o['seed'])==(regime, seed) for o in rows): continue
                new = probed(pretrained if regime=='whole' else regimes, regime, seed, root)
                rows += new
                lines = [json.dumps({k: round(v, 3) if isinstance(v, float) else v for k, v in o.items()})+'\n' for o in new]
                with open(kept, 'a') as f: f.writelines(lines)
                print(*lines, sep='', end='', flush=True)
