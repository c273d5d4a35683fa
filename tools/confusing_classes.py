"""Draw nbs/images/confusing-classes.png, the front page's first picture: where EfficientNet-Lite0 sees four cats in one photograph.

Run it in the project's environment (needs the dev requirements): python tools/confusing_classes.py"""
import sys
from pathlib import Path
import numpy as np, torch
root = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(root), str(root/'tests')]
from helpers.photos import cat_batch, cat_network, cat_picture, cats
from focusnet_fastai.see.network_view import NetworkView, shown_maps
from focusnet_fastai.see.parts import class_bars, map_row, show_bordered
from focusnet_fastai.see.page import colours, figure_style, Page


def draw():
    "The photograph; of the four classes that confuse: map, probability, whether the multi-warm label marks it"
    net, names = cat_network()
    view, photo, cell, left = NetworkView(net, cat_batch()), np.asarray(cat_picture())/255, 1.3, 1.95
    heats = shown_maps([view.maps(torch.tensor([cats]))], photo.shape[:2])[0][0][0]
    p = view.logits.softmax(1)[0, cats].tolist()
    with figure_style():
        page = Page(left+4*cell+.15, 2.6)
        show_bordered(page.axes(.05, .1, 1.75, 1.75), photo)
        page.text(.05, 2.0, "One photograph, 1,000 classes:\nwhat does EfficientNet-Lite0 see?", size=8, va='top')
        map_row(page, left, .05, cell, photo, heats, [True]*4, .85)
        class_bars(page.axes(left, 1.45, 4*cell, .7), p, [True]*4, '.0%', (0, 1.35*max(p)), page)
        middle = dict(ha='center', va='center')
        for i, c in enumerate(cats): page.text(left+(i+.5)*cell, 2.28, names[c], size=9, weight='bold', color=colours.ink, **middle)
        what = "Where it sees each class, and its probability. All four logits are positive: the multi-warm label marks them."
        page.text(left+2*cell, 2.48, what, size=7.5, **middle)
    return page.fig


if __name__ == '__main__': draw().savefig(root/'nbs'/'images'/'confusing-classes.png', dpi=96)
