"""Draw nbs/images/regime-map.png from results/cpu/{regimes,pretrained}/measures.jsonl: what each training gains, by data and schedule.

Run it in the project's environment: python tools/regime_map.py; with --table it prints the table of the README instead."""
import json, sys
from pathlib import Path
import numpy as np
from matplotlib.figure import Figure

root = Path(__file__).resolve().parent.parent
captions = { # of the regimes of results/regimes.py and results/pretrained.py
    'digits': '10 classes: 200 digits, 30 epochs',
    'cifar10-short': '10 classes: CIFAR-10, 200 a class, 10 epochs',
    'cifar10': '10 classes: CIFAR-10, 200 a class, 60 epochs',
    'gtsrb-short': '43 classes: traffic signs, 25 a class, 15 epochs',
    'gtsrb': '43 classes: traffic signs, 25 a class, 60 epochs',
    'cifar100-short': '100 classes: CIFAR-100, 100 a class, 10 epochs',
    'cifar100-25': '100 classes: CIFAR-100, 25 a class, 80 epochs',
    'cifar100': '100 classes: CIFAR-100, 100 a class, 40 epochs',
    'cifar100-200': '100 classes: CIFAR-100, 200 a class, 40 epochs',
    'tiny-short': '200 classes: Tiny ImageNet, 25 a class, 15 epochs',
    'tiny': '200 classes: Tiny ImageNet, 25 a class, 50 epochs',
    'heads-hidden-10': 'pretrained, new head: 90 flowers, 10 a class',
    'heads-linear-20': 'pretrained, new head: 90 flowers, 20 a class',
    'whole': 'pretrained, fine-tuned: 90 flowers, 10 a class',
    'signs-hidden-10': 'pretrained, new head: 43 traffic signs, 10 a class',
    'signs-linear-20': 'pretrained, new head: 43 traffic signs, 20 a class',
    'signs-whole': 'pretrained, fine-tuned: 43 traffic signs, 10 a class'}
one_training = dict.fromkeys(('digits', 'cifar10-short', 'cifar10'), 'focus_class_90') # the arm with the settings that `focus` has there
one_training |= {o: 'focus_class_all' for o in captions if captions[o].startswith('pretrained')}
by_itself = dict.fromkeys(('digits', 'cifar10-short', 'cifar10'), 'few') # the arm with the settings that `refocus` chooses there
by_itself |= {o: 'soft' for o in captions if captions[o].startswith('pretrained')}
arms = { # what the picture calls them, colour, mark
    'ce_2x': ('twice as long', '#7f7f7f', 's'),
    'label_smoothing': ('label smoothing', '#b8860b', 'v'),
    'ols': ('online label smoothing', '#2a7f62', 'D'),
    'focusnet': ("FocusNet, the paper's settings", '#1f4e9c', 'o'),
    'released': ('FocusNet, the released settings', '#7b4fa3', '^'),
    'soft': ('FocusNet, soft labels, no entropy', '#6fa8dc', 'o'),
    'one': ('FocusNet in one training', '#c0392b', '*')}


def measures():
    "All rows of both studies"
    files = [root/'results'/'cpu'/o/'measures.jsonl' for o in ('regimes', 'pretrained')]
    return [json.loads(o) for f in files if f.exists() for o in f.read_text().splitlines()]


def accuracy(rows, regime, arm):
    "Accuracy by seed"
    return {o['seed']: o['accuracy'] for o in rows if (o['regime'], o['arm'])==(regime, arm)}


def gain(rows, regime, arm):
    "Mean difference to plain cross-entropy, its standard error, and the number of seeds; None: not measured"
    if arm=='one': arm = one_training.get(regime, 'focus_class')
    if arm=='refocus': arm = by_itself.get(regime, 'released')
    ce, own = [accuracy(rows, regime, o) for o in ('ce', arm)]
    d = [own[o]-ce[o] for o in own if o in ce]
    return (np.mean(d), np.std(d, ddof=1)/len(d)**.5 if len(d)>1 else 0., len(d)) if d else None


def seeds(rows, regime):
    "Over how many seeds the marks of a line are"
    n = [g[2] for g in (gain(rows, regime, o) for o in arms) if g]
    return f'n = {min(n)}' if min(n)==max(n) else f'n = {min(n)} to {max(n)}'


def draw(rows):
    "A line a regime, a mark a training"
    shown = [o for o in captions if any(gain(rows, o, a) for a in arms)]
    fig = Figure(figsize=(8.6, 1.2+.48*len(shown)), dpi=110)
    ax = fig.subplots()
    ax.axvline(0, color='#444', lw=1)
    for i, regime in enumerate(shown):
        if i%2: ax.axhspan(i-.5, i+.5, color='#f4f4f4', zorder=0)
        for j, (arm, (_, colour, mark)) in enumerate(arms.items()):
            g = gain(rows, regime, arm)
            if g is None: continue
            y = i + (j-(len(arms)-1)/2)*.125
            ax.plot([g[0]-g[1], g[0]+g[1]], [y, y], color=colour, lw=1.5)
            ax.plot([g[0]], [y], mark, color=colour, ms=8 if mark=='*' else 5)
    ax.set_yticks(range(len(shown)), [f'{captions[o]} ({seeds(rows, o)})' for o in shown], fontsize=8)
    ax.set_ylim(len(shown)-.5, -.5)
    ax.set_xlabel('gain over plain cross-entropy of the same length,\npoints of accuracy (bars: one standard error)', fontsize=7.5)
    ax.tick_params(axis='x', labelsize=8)
    for o in ('top', 'right', 'left'): ax.spines[o].set_visible(False)
    handles = [ax.plot([], [], mark, color=colour, ms=8 if mark=='*' else 5, label=name)[0] for name, colour, mark in arms.values()]
    fig.legend(handles=handles, loc='upper center', ncol=3, fontsize=8, frameon=False)
    fig.tight_layout(rect=(0, 0, 1, 1-.55/fig.get_figheight()))
    return fig


columns = dict(ce_2x='twice as long', refocus='`refocus`', focusnet="`refocus` with `settings='paper'`", one='`learn.focus`')
lines = { # of the README's table: parts, and the regimes in them
    'from scratch, longer schedules': ('digits', 'cifar10', 'gtsrb', 'cifar100-25', 'cifar100', 'cifar100-200', 'tiny'),
    'from scratch, cut short': ('cifar100-short', 'tiny-short'),
    'from pretrained weights': ('heads-hidden-10', 'whole', 'signs-hidden-10', 'signs-whole')}


def as_text(g, digits=1):
    "A gain and its standard error"
    if g is None: return ''
    mean = round(g[0], digits)+0.
    return f'{mean:{"+" if mean else ""}.{digits}f} ± {g[1]:.{digits}f}'.replace('-', '−')


def table(rows):
    "The README's table: a line a regime, a column a training"
    out = ['| | '+' | '.join(columns.values())+' |', '|---|'+'---|'*len(columns)]
    for part, regimes in lines.items():
        out.append(f'| *{part}* |'+' |'*len(columns))
        for o in regimes:
            cells = [captions[o].removeprefix('pretrained, '), *(as_text(gain(rows, o, a)) for a in columns)]
            out.append(f"| {' | '.join(cells)} |")
    return '\n'.join(out)


if __name__ == '__main__':
    rows = measures()
    if not rows: sys.exit('There are no measures yet: run results/regimes.py and results/pretrained.py with --table')
    if '--table' in sys.argv: sys.exit(print(table(rows)))
    draw(rows).savefig(root/'nbs'/'images'/'regime-map.png')
