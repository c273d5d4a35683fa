"""Will it help me? Gains over plain cross-entropy by number of classes, images a class and length of the training.

    python results/regimes.py FOLDER                          # every row of every regime; what is finished is not run again, what was broken off goes on
    python results/regimes.py FOLDER --regimes digits cifar100 --seeds 0 1 --arms ce focusnet
    python results/regimes.py FOLDER --table results/cpu/regimes # accuracy, calibration and confused pairs of all finished runs

FOLDER holds the images, as the public repositories have them: `cifar10` (fastai's, folders train and test), `cifar100` (github.com/cyizhuo/CIFAR-100-dataset, folders train and test),
`tiny-imagenet-200` (github.com/seshuad/IMagenet) and `gtsrb` (github.com/jovanzac/Traffic); digits come with scikit-learn. Runs stand in FOLDER/runs. A seed chooses the training
images, the initialisation and the order; validation images are the same for all. What was
chosen for `learn.focus` and the settings *few* was chosen on digits, with seeds from 100 on; all others are those of the paper, of
its code, or of the papers of the methods.
"""
import argparse, inspect, json, os, warnings
from collections import Counter
os.environ.setdefault('OMP_NUM_THREADS', '1')
warnings.filterwarnings('ignore')
import torch
from fastai.vision.all import *
from focusnet_fastai.probabilities import cross_fitted, expected_calibration_error
from focusnet_fastai.data.image_files import cached_images, read_images
from focusnet_fastai.data.pictures import picture_files
from focusnet_fastai.data.small import channel_stats, small_dls
from focusnet_fastai.lab.training import StepRate, top_5, Training
from focusnet_fastai.lab.recipes import digits
from focusnet_fastai.lab.runs import run_seeds
from focusnet_fastai.lab.config import find_run, run_config
from focusnet_fastai.lab.study import read_run
from focusnet_fastai.label_sets import crossed_sets, set_measures
from focusnet_fastai.loss import multi_warm_label
from focusnet_fastai.models import thin_resnet
from focusnet_fastai.precision import HalfPrecision # noqa: F401, `Learner.to_precision`

FOLDER = Path(os.environ.get('REGIMES', '.'))


def class_folders(path):
    "Files by class, of one folder a class"
    return {o.name: sorted(picture_files(o)) for o in sorted(path.iterdir()) if o.is_dir()}


def cifar10(seed, per_class): return split_by_folder(FOLDER/'cifar10', 'test', seed, per_class, valid_per_class=400)
def cifar100(seed, per_class): return split_by_folder(FOLDER/'cifar100', 'test', seed, per_class)


def split_by_folder(path, valid, seed, per_class, valid_per_class=None):
    "Training files drawn by `seed`, validation files, class names"
    train,valid = class_folders(path/'train'),class_folders(path/valid)
    return {k: drawn(v, seed, per_class) for k,v in train.items()}, {k: v[:valid_per_class] for k,v in valid.items()}


def drawn(files, seed, n): return [files[i] for i in np.random.RandomState(seed).permutation(len(files))[:n]]


def tiny(seed, per_class):
    "Tiny ImageNet: validation labels stand in a table"
    path = FOLDER/'tiny-imagenet-200'
    train = {o.name: sorted((o/'images').glob('*.JPEG')) for o in sorted((path/'train').iterdir()) if o.is_dir()}
    rows = [o.split('\t')[:2] for o in (path/'val/val_annotations.txt').read_text().splitlines()]
    valid = {k: [path/'val/images'/f for f,c in rows if c==k] for k in train}
    return {k: drawn(v, seed, per_class) for k,v in train.items()}, valid


def gtsrb(seed, per_class):
    "Traffic signs: pictures of one track (30 of one sign) stay on one side; every fifth track is for validation"
    train,valid = {},{}
    for k,files in class_folders(FOLDER/'gtsrb').items():
        tracks = sorted({f.name[:5] for f in files})
        held = set(tracks[::5])
        train[k] = drawn([f for f in files if f.name[:5] not in held], seed, per_class)
        valid[k] = [f for f in files if f.name[:5] in held and int(f.stem[6:])%2]
    return train, valid


SETS = dict(cifar10=cifar10, cifar100=cifar100, tiny=tiny, gtsrb=gtsrb)


def bytes_of(files, size, cache=None):
    "Images `(N,3,size,size)` and labels of files by class"
    fs = [f for o in files.values() for f in o]
    x = read_images(fs, 'RGB', (size, size)) if cache is None else cached_images(cache, fs, 'RGB', (size, size))
    return x, torch.tensor([i for i,o in enumerate(files.values()) for _ in o])


def some_of(n, *tensors):
    "The same `n` rows of each, spread evenly"
    return [o[::-(-len(o)//n)] for o in tensors]


def few_images(
    data:str='cifar100', # one of `SETS`
    per_class:int=100, # training images of each class
    seed:int=0, # chooses them
    epochs:int=40, # in all
    lr:float=0.1, # at the start
    drops=(1/2,3/4), # fractions of the training where the rate falls by 10
    wd:float=5e-4, # weight decay
    bs:int=128, # images a batch
    width:int=16, # of the thin ResNet
    size:int=32, # pixels
    precision:str='bf16', # None: float32
    watched:int=500 # validation images that the log of each epoch counts; None: all, as the tables do
)->Training:
    "Few images a class and a thin ResNet, SGD whose rate falls in steps"
    train,valid = SETS[data](seed, per_class)
    x,y = bytes_of(train, size)
    vx,vy = bytes_of(valid, size, FOLDER/f'{data}-valid-{size}.npz')
    if watched: vx,vy = some_of(watched, vx, vy)
    flip = 0. if data=='gtsrb' else .5
    dls = small_dls((x, y), (vx, vy), list(train), channel_stats(x), 4, flip, bs=bs)
    model = thin_resnet(dls.c, width=width)
    learn = Learner(dls, model, opt_func=partial(SGD, mom=.9, decouple_wd=False), lr=lr, wd=wd, wd_bn_bias=True, metrics=[accuracy, top_5])
    if precision: learn.to_precision(precision)
    return Training(learn, epochs, lr, dict(lr=StepRate(lr, drops)))


# regime: recipe, its settings, epochs, seeds
REGIMES = {
    'digits':        (digits, dict(n_train=200), 30, range(20)),
    'cifar10-short': (few_images, dict(data='cifar10', per_class=200), 10, range(5)),
    'cifar10':       (few_images, dict(data='cifar10', per_class=200), 60, range(5)),
    'gtsrb-short':   (few_images, dict(data='gtsrb', per_class=25), 15, range(5)),
    'gtsrb':         (few_images, dict(data='gtsrb', per_class=25), 60, range(5)),
    'cifar100-short':(few_images, dict(data='cifar100', per_class=100), 10, range(5)),
    'cifar100':      (few_images, dict(data='cifar100', per_class=100), 40, range(5)),
    'cifar100-25':   (few_images, dict(data='cifar100', per_class=25), 80, range(5)),
    'cifar100-200':  (few_images, dict(data='cifar100', per_class=200), 40, range(3)),
    'tiny-short':    (few_images, dict(data='tiny', per_class=25), 15, range(5)),
    'tiny':          (few_images, dict(data='tiny', per_class=25), 50, range(5)),
}
# arm: method, its settings, factor of the epochs
ARMS = dict(
    ce=('baseline', {}, 1), ce_2x=('baseline', {}, 2), label_smoothing=('label_smoothing', {}, 1), penalty=('confidence_penalty', {}, 1),
    entropy=('confidence_penalty', dict(beta=1.), 1), ols=('ols', {}, 1), pskd=('pskd', {}, 1), maxsup=('maxsup', {}, 1),
    focusnet=('focusnet', {}, 1), released=('focusnet_released', {}, 1), few=('focusnet_few', {}, 1),
    soft=('focusnet', dict(rule='soft', beta=0.), 1),
    focus_class=('focus_class', {}, 1), focus_class_90=('focus_class', dict(confidence=.9), 1), focus_class_70=('focus_class', dict(confidence=.7), 1),
    focus_class_50=('focus_class', dict(confidence=.5), 1), focus_memory=('focus_memory', {}, 1), focus_ema=('focus_ema', {}, 1))


def runs_of(regime, arm, seeds, root):
    "Train one arm of a regime with some seeds"
    recipe,settings,epochs,_ = REGIMES[regime]
    method,own,factor = ARMS[arm]
    return run_seeds(recipe, method, seeds, root/regime, **settings, **own, epochs=epochs*factor)


def all_counted(recipe): return dict(watched=None) if 'watched' in inspect.signature(recipe).parameters else {}


def logits_of(run, settings_to_training):
    "Logits and labels of a finished run on its validation images, kept beside it in half precision"
    f = run.folder/'preds.npz'
    if not f.exists():
        learn = settings_to_training(**merge(run.config['recipe_settings'], all_counted(settings_to_training))).learn
        learn.model.load_state_dict(torch.load(run.folder/'weights.pth', weights_only=True))
        learn.model.to(learn.dls.device)
        with learn.no_bar(), learn.no_logging(): z, y = learn.get_preds(act=noop)
        np.savez(f, logits=z.half().numpy(), labels=y.numpy())
    d = np.load(f)
    return torch.from_numpy(d['logits']).float(), torch.from_numpy(d['labels']).long()


def confused_pairs(z, y, n=20):
    "The `n` most frequent (true, predicted) pairs of errors"
    p = z.argmax(1)
    wrong = [(int(t), int(o)) for t, o in zip(y, p) if t!=o]
    return [k for k, _ in Counter(wrong).most_common(n)]


def in_pairs(z, y, pairs):
    "Errors that fall into the pairs"
    kept = set(pairs)
    return sum((int(t), int(o)) in kept for t, o in zip(y, z.argmax(1)))


def measures(z, y, pairs):
    "Accuracy, errors in the baseline's most confused pairs, calibration raw and after one temperature, sets that hold the right class in 90 %"
    fitted,sets = cross_fitted(z, y),set_measures(crossed_sets(z, y, .9), y) # each half of the images for the other
    return dict(accuracy=100*(z.argmax(1)==y).float().mean().item(), pairs=in_pairs(z, y, pairs), ece=expected_calibration_error(z.softmax(1), y),
                nll=F.cross_entropy(z, y).item(), temperature=fitted['temperature'], ece_T=fitted['ece'], nll_T=fitted['nll'], set_size=sets['size'],
                set_coverage=sets['coverage'])


superclasses = """beaver dolphin otter seal whale; aquarium_fish flatfish ray shark trout; orchid poppy rose sunflower tulip; bottle bowl can cup plate;
apple mushroom orange pear sweet_pepper; clock keyboard lamp telephone television; bed chair couch table wardrobe; bee beetle butterfly caterpillar cockroach;
bear leopard lion tiger wolf; bridge castle house road skyscraper; cloud forest mountain plain sea; camel cattle chimpanzee elephant kangaroo;
fox porcupine possum raccoon skunk; crab lobster snail spider worm; baby boy girl man woman; crocodile dinosaur lizard snake turtle;
hamster mouse rabbit shrew squirrel; maple_tree oak_tree palm_tree pine_tree willow_tree; bicycle bus motorcycle pickup_truck train;
lawn_mower rocket streetcar tank tractor""" # CIFAR-100's own groups of five


def warm_in_superclass(root, regimes, arms):
    "Of the classes that confuse CIFAR-100's baselines, how many belong to the superclass of the true one? By chance 4 of 99"
    names = sorted(o.name for o in (FOLDER/'cifar100'/'train').iterdir())
    group = {o: i for i, os in enumerate(superclasses.split(';')) for o in os.split()}
    same = torch.tensor([[group[a]==group[b] and a!=b for b in names] for a in names])
    rows = []
    for (arm, seed), run in finished('cifar100', root, regimes, arms).items():
        if arm!='ce': continue
        z, y = logits_of(run, regimes['cifar100'][0])
        warm = multi_warm_label(z, y).bool().scatter(1, y[:, None], False)
        order = z.scatter(1, y[:, None], -1e4).argsort(1, descending=True)
        rows.append(dict(seed=seed, warm_per_image=warm.sum(1).float().mean().item(), warm_in_superclass=(warm & same[y]).sum().item()/warm.sum().item(),
                         strongest_in_superclass=same[y, order[:, 0]].float().mean().item(), strongest_four=same[y[:, None], order[:, :4]].float().mean().item(), chance=4/99))
    return rows


def finished(regime, root, regimes, arms):
    "Runs of a regime by (arm, seed)"
    res, (recipe, settings, epochs, _) = {}, regimes[regime]
    for arm, (method, own, factor) in arms.items():
        for seed in range(30):
            run = find_run(root/regime, run_config(recipe, method, seed, **settings, **own, epochs=epochs*factor))
            if run is not None and (run/'result.json').exists(): res[arm, seed] = read_run(run)
    return res


def rows_of(regime, root, regimes, arms):
    "One dict of measures for each finished run of a regime"
    runs, rows, pairs = finished(regime, root, regimes, arms), [], {}
    for (arm, seed), run in runs.items():
        z, y = logits_of(run, regimes[regime][0])
        if arm=='ce': pairs[seed] = confused_pairs(z, y)
        if seed in pairs: rows.append(dict(regime=regime, arm=arm, seed=seed, **measures(z, y, pairs[seed])))
    return rows


def spread(v):
    "Mean and standard error, from two values on"
    return f'{np.mean(v):.2f}' + (f' +-{np.std(v, ddof=1)/len(v)**.5:.2f}' if len(v)>1 else '')


def table(rows, arms):
    "Differences to plain cross-entropy, paired by seed"
    lines = ['| regime | arm | n | accuracy, % | gain | errors in the top 20 pairs, of CE | ECE | NLL | temperature | ECE after it | NLL after it | classes in a 90 % set |', '|'+' --- |'*12]
    ce = {(o['regime'], o['seed']): o for o in rows if o['arm']=='ce'}
    for regime in dict.fromkeys(o['regime'] for o in rows):
        for arm in arms:
            own = [o for o in rows if (o['regime'], o['arm'])==(regime, arm)]
            if not own: continue
            base = [ce[regime, o['seed']] for o in own]
            gain = '' if arm=='ce' else spread([o['accuracy']-b['accuracy'] for o, b in zip(own, base)])
            mean = {k: np.mean([o[k] for o in own]) for k in ('ece', 'nll', 'temperature', 'ece_T', 'nll_T', 'set_size')}
            pairs = f"{np.mean([o['pairs'] for o in own]):.0f} of {np.mean([b['pairs'] for b in base]):.0f}"
            lines.append(f"| {regime} | {arm} | {len(own)} | {spread([o['accuracy'] for o in own])} | {gain} | {pairs} | " + ' | '.join(f'{v:.3f}' for v in mean.values()) + ' |')
    return '\n'.join(lines)


def write_tables(root, out, regimes, arms):
    "All rows as JSON lines, and the table"
    rows = [o for regime in regimes for o in rows_of(regime, root, regimes, arms)]
    out.mkdir(parents=True, exist_ok=True)
    (out/'measures.jsonl').write_text(''.join(json.dumps(o)+'\n' for o in rows))
    if 'cifar100' in regimes: (out/'superclasses.jsonl').write_text(''.join(json.dumps(o)+'\n' for o in warm_in_superclass(root, regimes, arms)))
    text = table(rows, arms)
    (out/'table.md').write_text(text+'\n')
    return text


def main(regimes, arms, runs_of, doc, set_folder):
    "The command of a study"
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('folder', type=Path)
    parser.add_argument('--regimes', nargs='+', default=list(regimes), choices=regimes)
    parser.add_argument('--seeds', type=int, nargs='+', help='default: those of the regime')
    parser.add_argument('--arms', nargs='+', default=list(arms), choices=arms)
    parser.add_argument('--table', type=Path, help='write the tables of what is finished into this folder')
    args = parser.parse_args()
    set_folder(args.folder.resolve())
    torch.set_num_threads(1)
    root = args.folder.resolve()/'runs'
    if args.table: return print(write_tables(root, args.table, {k: regimes[k] for k in args.regimes}, arms))
    todo = [(r, s, a) for r in args.regimes for s in args.seeds or regimes[r][-1] for a in args.arms]
    for regime, seed, arm in todo: runs_of(regime, arm, [seed], root)


def set_folder(folder):
    global FOLDER
    FOLDER = folder


if __name__ == '__main__': main(REGIMES, ARMS, runs_of, __doc__, set_folder)
