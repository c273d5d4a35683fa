"""Figures 1 and 2 of the paper from the networks of results/imagewoof.py, with the paper's scenes: which of them are there?

    python results/woof_figures.py FOLDER PICTURES --base BASELINE.pth --learn FOCUSNET.pth

FOLDER as for results/imagewoof.py. Weights are those of a run (`weights.pth`), or copies of them in half precision. The scenes are
searched for in the 3,929 validation photographs: how many of each there are is printed, and the first ones are drawn into PICTURES,
which is not committed: the photographs are not ours.
"""
import argparse, hashlib, os, warnings
os.environ.setdefault('OMP_NUM_THREADS', '1')
warnings.filterwarnings('ignore')
import matplotlib
matplotlib.use('agg')
import torch
from fastai.vision.all import *
from focusnet_fastai.all import multi_warm_label, show_confusion, show_focus
import imagewoof

breeds = list(imagewoof.imagewoof_breeds.values())
ridgeback, beagle, samoyed, dingo = map(breeds.index, ('Rhodesian ridgeback', 'Beagle', 'Samoyed', 'Dingo'))


def trained(path, dls=None):
    "A learner with weights from a file"
    t = imagewoof.woof(precision=None).learn
    if dls is not None: t.dls = dls
    t.model.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in torch.load(path, weights_only=True).items()})
    t.model.to(t.dls.device)
    print(f"{path.name}: sha256 {hashlib.sha256(path.read_bytes()).hexdigest()}")
    return t


def logits(learn):
    with learn.no_bar(), learn.no_logging(): return learn.get_preds(act=noop)


def brightness(learn, i):
    "Of the middle of a photograph, where the dog is: 0 to 1"
    x = learn.dls.valid_ds.x[i].float()/255
    h, w = x.shape[-2:]
    return x[:, h//4:-h//4, w//4:-w//4].mean().item()


def unlike(z, ids, light):
    "The darkest and the lightest image whose warm classes differ, without the true one"
    sets = {i: frozenset(j for j in (z[i] > 0).nonzero()[:, 0].tolist() if j != dingo) for i in ids}
    ids = sorted((i for i in ids if sets[i]), key=light)
    return next(((a, b) for b in reversed(ids) for a in ids if sets[a] != sets[b]), None)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('folder', type=Path)
    p.add_argument('pictures', type=Path)
    p.add_argument('--base', type=Path, required=True, help='weights of the baseline')
    p.add_argument('--learn', type=Path, required=True, help='weights of the FocusNet')
    a = p.parse_args()
    imagewoof.set_folder(a.folder.resolve())
    a.pictures.mkdir(parents=True, exist_ok=True)
    base = trained(a.base)
    learn = trained(a.learn, base.dls)
    (zb, y), (z, _) = logits(base), logits(learn)
    where = lambda ok: ok.nonzero()[:, 0].tolist()
    label = multi_warm_label(zb, y)
    right = [(o.argmax(1) == y).float().mean() for o in (zb, z)]
    print(f"right: baseline {right[0]:.4f}, FocusNet {right[1]:.4f}; warm classes an image {(label > 0).sum(1).float().mean():.2f}")
    taken = where((y == dingo) & (zb.argmax(1) == ridgeback))
    saved = [i for i in taken if z[i].argmax() == dingo]
    print(f"Figure 1: {len(taken)} Dingoes that the baseline takes for a Ridgeback, {len(saved)} of them a Dingo to FocusNet; "
          f"the other way round {sum((z[i].argmax() == ridgeback).item() for i in where((y == dingo) & (zb.argmax(1) == dingo)))}")
    held = where((y == beagle) & (label[:, samoyed] > 0) & (label[:, dingo] > 0))
    print(f"Figure 2: {len(held)} of {(y == beagle).sum()} Beagles with both Samoyed and Dingo among the warm classes")
    two = unlike(zb, where(y == dingo), partial(brightness, base))
    warm = [[breeds[j] for j in where(label[i] > 0)] for i in two or ()]
    print(f"Figure 2: two Dingoes, dark and light, with different labels: {two}", *warm)
    first = (saved or taken)[:3]
    if first: show_focus(learn, base, first, branches=True).savefig(a.pictures/'figure-1.png', dpi=110, bbox_inches='tight')
    scenes = [*taken[:1], *held[:1], *(two or ())]
    if scenes: show_confusion(base, scenes).savefig(a.pictures/'figure-2.png', dpi=110, bbox_inches='tight')


if __name__ == '__main__': main()
