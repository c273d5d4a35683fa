"A small network that reads scikit-learn's digits as they are, for the lessons about class maps"
import torch, torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn


def conv(ni, nf): return nn.Sequential(nn.Conv2d(ni, nf, 3, padding=1), nn.BatchNorm2d(nf), nn.ReLU(inplace=True))


def digit_network(epochs=4):
    "A network of three convolutions, trained in seconds, with the 300 images and classes that are kept apart"
    digits = load_digits()
    x, y = torch.tensor(digits.images, dtype=torch.float32)[:, None]/16, torch.tensor(digits.target)
    torch.manual_seed(0)
    net = nn.Sequential(conv(1, 16), conv(16, 32), conv(32, 64), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))
    opt = torch.optim.Adam(net.parameters(), 3e-3)
    for _ in range(epochs):
        for i in torch.randperm(len(x)-300).split(64):
            F.cross_entropy(net(x[i]), y[i]).backward()
            opt.step()
            opt.zero_grad()
    return net.eval(), x[-300:], y[-300:]


def most_confident_mistake(z, y):
    "The position of the image whose wrong answer is the surest"
    p = z.softmax(1)
    return (p.amax(1)*(p.argmax(1) != y)).argmax().item()


def show(ax, image, m=None, title=''):
    "An image in grey, and over it a map of evidence 0..1"
    ax.imshow(image, cmap='gray_r', extent=(0, 1, 0, 1))
    if m is not None: ax.imshow(m, cmap='plasma', alpha=(m*.85).numpy(), vmin=0, vmax=1, extent=(0, 1, 0, 1))
    ax.set_title(title, fontsize=8)
    ax.axis('off')
