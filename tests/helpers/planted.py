"Digits with something wrong about them that is known, and a small network that was trained on these"
from types import SimpleNamespace
import numpy as np, torch
import torch.nn.functional as F
from torch import nn
from focusnet_fastai.data.digits import all_digits, digits_split


def digit_sets():
    "Pixels `(n, 64)` and labels for training and validation"
    (x, y), (train, valid) = all_digits(8), digits_split()
    return [(x[i].flatten(1), y[i].clone()) for i in (train, valid)]


def exchanged(y, pair, share, seed):
    "Labels of which a share of two classes is exchanged"
    y, rng = y.clone(), np.random.default_rng(seed)
    picks = [rng.choice((y == o).nonzero()[:, 0].numpy(), round(share*int((y == o).sum())), replace=False) for o in pair]
    for i, new in zip(picks, pair[::-1]): y[i] = new
    return y


def arrays_of(train, valid, n_classes=10, epochs=15, seed=0):
    "Arrays as any framework would write them; PyTorch alone"
    torch.manual_seed(seed)
    (x, y), (xv, yv) = train, valid
    body, head = nn.Sequential(nn.Linear(64, 64), nn.ReLU()), nn.Linear(64, n_classes)
    opt = torch.optim.Adam([*body.parameters(), *head.parameters()], 3e-3)
    zs = torch.zeros(epochs, len(y), n_classes)
    for e in range(epochs):
        for i in torch.randperm(len(y)).split(32):
            z = head(body(x[i]))
            zs[e, i] = z.detach()
            opt.zero_grad()
            F.cross_entropy(z, y[i]).backward()
            opt.step()
    with torch.no_grad(): f, fv = body(x), body(xv)
    with torch.no_grad(): z, zv = head(f), head(fv)
    names = [f'd{i}' for i in range(n_classes)]
    return dict(logits=zv, labels=yv, names=names, features=fv, train_logits=z, train_labels=y, train_features=f, train_epochs=zs)


def spoilt_digits(cause, seed=0):
    "Arrays of a network that was trained on digits with a cause, and what is known: `true` labels and `wrong` ones"
    (x, y), (xv, yv) = digit_sets()
    true, n = y.clone(), 10
    if cause == 'relabel': y, yv = [exchanged(o, (3, 8), .1, seed+i) for i, o in enumerate((y, yv))]
    if cause == 'merge':
        rng, n = np.random.default_rng(seed), 11
        y, yv = [torch.where((o == 7) & torch.from_numpy(rng.random(len(o)) < .5), 10, o) for o in (y, yv)]
    if cause == 'collect':
        keep = torch.cat([(y != 9).nonzero()[:, 0], (y == 9).nonzero()[:10, 0]])
        x, y, true = x[keep], y[keep], true[keep]
    if cause == 'split':
        n = 9
        y, yv = [torch.where(o == 0, 1, torch.where(o == 9, 0, o)) for o in (y, yv)] # zeros are called one, nines zero
    return arrays_of((x, y), (xv, yv), n, seed=seed), SimpleNamespace(true=true, wrong=(true != y).nonzero()[:, 0].tolist())
