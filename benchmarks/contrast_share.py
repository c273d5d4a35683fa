"""Do contrast maps tell one class under two names from classes that are only alike?

    python benchmarks/contrast_share.py --photos FOLDER --each 500 --epochs 20
    python benchmarks/contrast_share.py --photos FOLDER --classes 20 --each 100 --epochs 60

The photographs are of 32x32 pixels (FOLDER/train/CLASS/*.png). A class drawn at random gets a second name by the toss of a coin, in
training and validation; a thin ResNet is trained, and `seen_contrast` is measured for that pair and for the ten most confused ones. Both
settings above are of CIFAR-10 and CIFAR-100; after 60 epochs with 100 photographs a class the network knows its training photographs by
heart. `limits.flat` was chosen on seeds from 100.
"""
import argparse, json, random, sys, warnings
from pathlib import Path
warnings.filterwarnings('ignore')
sys.path.insert(0, str(Path(__file__).parent))


def args():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--photos', help='folder with train/CLASS/*.png')
    p.add_argument('--classes', type=int, help='drawn at random (default all)')
    p.add_argument('--each', type=int, default=500, help='training photographs of each class (default 500)')
    p.add_argument('--epochs', type=int, default=20, help='of a training (default 20)')
    p.add_argument('--first', type=int, default=0, help='first seed (default 0)')
    p.add_argument('--seeds', type=int, default=5, help='how many (default 5)')
    p.add_argument('--runs', default='runs/contrast_share', help='folder of what is done (default runs/contrast_share)')
    p.add_argument('--markdown', help='also write the table of all that is done to this file')
    p.add_argument('--table', action='store_true', help='only show what is done')
    return p.parse_args()


def photographs(a):
    "Photographs and labels for training, the same for validation (100 of each class), class names"
    from diagnose import class_files, read_photos
    folder = Path(a.photos)
    names = sorted(o.name for o in (folder/'train').iterdir() if o.is_dir())
    if a.classes: names = sorted(np.random.default_rng(0).choice(names, a.classes, replace=False).tolist())
    sets = []
    for n, start in ((a.each, 0), (100, a.each)):
        files = class_files(folder/'train', names, n, start)
        x = torch.from_numpy(np.ascontiguousarray(read_photos(files).transpose(0, 3, 1, 2)))
        sets.append((x, torch.tensor([names.index(f.parent.name) for f in files])))
    return *sets, names


def two_names(sets, names, seed):
    "One class under two names: the sets, the names, and which"
    rng = np.random.default_rng(seed)
    c, new = int(rng.integers(len(names))), len(names)
    toss = lambda y: torch.where((y == c) & torch.from_numpy(rng.random(len(y)) < .5), new, y)
    return [(x, toss(y)) for x, y in sets], [*names, names[c]+' 2'], (c, new)


def trained(sets, names, seed, epochs):
    "A thin ResNet"
    dls = InMemoryLoaders.from_tensors(*sets, names, bs=64, batch_tfms=[CropBatch(pad=4), FlipBatch(), Normalize.from_stats(*cifar_stats)],
                                       device='cpu', drop_last=False)
    set_seed(seed)
    dls.train.rng = random.Random(seed)
    learn = Learner(dls, thin_resnet(len(names), 3)).to_precision('bf16')
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(epochs, 1e-2)
    return learn


def study(a, data, seed):
    "One seed: a record"
    sets, names, twins = two_names(data[:2], data[2], seed)
    learn = trained(sets, names, seed, a.epochs)
    d = learn.diagnose(n=10)
    cases = [Case(d, *o) for o in worst_pairs(d.counts, 10)]
    share = {(o.a, o.b): seen_contrast(learn, learn.dls.valid, o) for o in [*cases, Case(d, *twins)]}
    others = [v for k, v in share.items() if set(k) != set(twins)]
    said = [v for t, p, v in zip(d.df.true, d.df.predicted, d.df.verdict) if {t, p} == {names[i] for i in twins}]
    return dict(photos=Path(a.photos).name, classes=len(data[2]), each=a.each, epochs=a.epochs, seed=seed, twins=share[twins],
                others=others, said=said[0] if said else '', accuracy=float((d.z.argmax(1) == d.y).float().mean()))


def table(records):
    "Markdown"
    head = 'photographs | classes | a class | epochs | accuracy | one class under two names | other confused pairs, 5% / median | merge said'
    lines = [f'| {head} |', '|---|---|---|---|---|---|---|---|']
    settings = sorted({(o['photos'], o['classes'], o['each'], o['epochs']) for o in records})
    for s in settings:
        rows = [o for o in records if (o['photos'], o['classes'], o['each'], o['epochs']) == s]
        twins, others = [o['twins'] for o in rows], [v for o in rows for v in o['others']]
        acc = np.mean([o['accuracy'] for o in rows])
        lines.append('| {} | {} | {} | {} |'.format(*s) + f' {acc:.1%} | {min(twins):.2f} to {max(twins):.2f} (n = {len(twins)}) '
                     f'| {np.quantile(others, .05):.2f} / {np.median(others):.2f} (n = {len(others)}) | '
                     f'{sum(o["said"] == "merge" for o in rows)} of {len(rows)} |')
    return '\n'.join(lines)


def main():
    global np, torch, CropBatch, FlipBatch, InMemoryLoaders, Learner, Normalize, cifar_stats, set_seed, thin_resnet, Case
    global seen_contrast, worst_pairs
    a = args()
    import numpy as np, torch
    from fastai.vision.all import Learner, Normalize, cifar_stats, set_seed
    from focusnet_fastai.case import Case, worst_pairs
    from focusnet_fastai.contrast_share import seen_contrast
    from focusnet_fastai.data.memory import CropBatch, FlipBatch, InMemoryLoaders
    from focusnet_fastai.models import thin_resnet
    import focusnet_fastai.diagnose, focusnet_fastai.precision
    torch.set_num_threads(1)
    log = Path(a.runs)/'contrast_share.jsonl'
    log.parent.mkdir(parents=True, exist_ok=True)
    done = [json.loads(o) for o in log.read_text().splitlines()] if log.exists() else []
    if not a.table:
        data = photographs(a)
        key = lambda seed: (Path(a.photos).name, len(data[2]), a.each, a.epochs, seed)
        kept = {(o['photos'], o['classes'], o['each'], o['epochs'], o['seed']) for o in done}
        for seed in range(a.first, a.first+a.seeds):
            if key(seed) in kept: continue
            done.append(study(a, data, seed))
            with open(log, 'a') as f: f.write(json.dumps(done[-1])+'\n')
            print(json.dumps({k: v for k, v in done[-1].items() if k != 'others'}), flush=True)
    text = table(done)
    print('\n'+text)
    if a.markdown: Path(a.markdown).write_text(text+'\n')


if __name__ == '__main__': main()
