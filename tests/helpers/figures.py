"Digits, networks and artists for the tests of figures"
from functools import cache
import torch
from matplotlib.colors import to_hex
from PIL import Image
from torch import nn
from fastai.vision.all import Learner, accuracy
from focusnet_fastai.data.digits import digits_dls
from focusnet_fastai.data.memory import InMemoryLoaders
from focusnet_fastai.models import small_cnn
from focusnet_fastai.see.examples import digit_learners

names = 'zero one two three four five six seven eight nine'.split()


@cache
def digit_pair():
    "A baseline and a FocusNet, trained once for all tests of figures"
    return digit_learners(n_train=150, n_epoch=8)


def logits(net, x):
    "An independent forward"
    net.eval()
    with torch.no_grad(): return net(torch.as_tensor(x).as_subclass(torch.Tensor))


def valid_logits(base, learn):
    "Logits of both networks and the classes for the whole validation set"
    xs, ys = zip(*[(x.as_subclass(torch.Tensor), y) for x, y in base.dls.valid])
    x = torch.cat(xs)
    return logits(base.model, x), logits(learn.model, x), torch.cat(ys).as_subclass(torch.Tensor)


def named_dls(vocab, **kw):
    "The digits with other names, or with classes of which there are no images"
    d = digits_dls(n_train=64)
    tr, va = ((o.x, o.y) for o in (d.train_ds, d.valid_ds))
    return InMemoryLoaders.from_tensors(tr, va, vocab, bs=32, **kw)


def named_learner(base): return Learner(named_dls(names, batch_tfms=list(base.dls.valid.after_batch.fs)), base.model, metrics=accuracy)


class Many(nn.Module):
    "100 classes, of which 12 are warm whatever the image"
    def __init__(self):
        super().__init__()
        self.net = small_cnn(100, n_in=1)
        nn.init.zeros_(self.net[-1].weight)
        with torch.no_grad(): self.net[-1].bias.copy_(torch.cat([torch.arange(12)*.1+.1, -torch.arange(88)*.1-.1]))
    def forward(self, x): return self.net(x)


def image_axes(fig): return [a for a in fig.axes if a.images]
def border(ax):
    o = ax.spines['left']
    assert all(s.get_edgecolor()==o.get_edgecolor() and s.get_linestyle()==o.get_linestyle() for s in ax.spines.values())
    return to_hex(o.get_edgecolor()), o.get_linestyle()
def bars(ax): return [(p.get_height(), p.get_hatch(), to_hex(p.get_edgecolor())) for p in ax.patches]
def bar_axes(fig): return [a for a in fig.axes if a.patches]
def shown_text(fig): return [t.get_text() for t in fig.texts]
def all_text(fig): return ' '.join(shown_text(fig) + [t.get_text() for a in fig.axes for t in a.texts])


def picture_size(f):
    "Width and height; the file is closed"
    with Image.open(f) as im: return im.size


def png(folder, i, dls, name=None):
    x, y = dls.valid_ds[i]
    f = folder/(name or f'{i}.png')
    f.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((x[0].numpy()*255).round().astype('uint8')).save(f)
    return f
