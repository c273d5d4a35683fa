"""Every method, for the tests that all of them must pass: `(name, make)`, where `make(learn, base)` gives the learner to train.

A method that is only a callback is added to `learn`; one that wraps gives its wrapped learner. A new method gets a line here."""
from PIL import Image
from sklearn.datasets import load_digits
from torch import nn
from fastai.vision.all import CategoryBlock, DataBlock, get_image_files, ImageBlock, Learner, parent_label, PILImageBW, RandomSplitter
from focusnet_fastai.focus import FocusClass, FocusEMA, FocusMemory
from focusnet_fastai.focusnet import FocusNetCallback
from focusnet_fastai.methods.regularise import ConfidencePenalty, CrossEntropy, Focal, LabelSmoothing, MaxSup
from focusnet_fastai.methods.distil import KD, TfKD, TfKDReg
from focusnet_fastai.methods.views import CSKD, DDGSD, SLA
from focusnet_fastai.methods.dropmax import DropMax, DropMaxNetwork
from focusnet_fastai.methods.frskd import FocusFRSKD, FRSKD, FRSKDF
from focusnet_fastai.methods.byot import BYOT
from focusnet_fastai.methods.one import ONE
from focusnet_fastai.methods.online_smoothing import OnlineLabelSmoothing
from focusnet_fastai.methods.pskd import PSKD
from focusnet_fastai.models import lenet5, thin_resnet
from focusnet_fastai.terms import LossTerms


def attach(make_cb): return lambda learn, base: learn.add_cb(make_cb(base))


def tiny_resnet(n_out=10, n_in=1, n=8): return thin_resnet(n_out, n_in, n)  # for methods that need stages


def on(net, wrap):
    "A case that trains `net()` in the place of the learner's own network"
    def make(learn, base):
        if is_lenet(learn.model): learn.model = net()
        return wrap(learn)
    make.net = net
    return make


def is_lenet(model): return isinstance(model, nn.Sequential) and list(map(type, model)) == list(map(type, lenet5(10)))


def dropmax(learn, base): return DropMax.wrap(learn)
dropmax.net = lambda: DropMaxNetwork(lenet5(10), 10).deployed  # what is exported is not the plain network


byot = on(tiny_resnet, BYOT.wrap)
byot.of_a_batch = "the distance of BYOT's features is one norm over the batch"


def method_cases():
    yield 'CrossEntropy', attach(lambda base: CrossEntropy())
    yield 'LabelSmoothing', attach(lambda base: LabelSmoothing())
    yield 'MaxSup', attach(lambda base: MaxSup())
    yield 'Focal', attach(lambda base: Focal())
    yield 'ConfidencePenalty', attach(lambda base: ConfidencePenalty())
    yield 'FocusNet', attach(lambda base: FocusNetCallback(base))
    yield 'FocusClass', attach(lambda base: FocusClass(confidence=.9))
    yield 'FocusMemory', attach(lambda base: FocusMemory(start=0.))
    yield 'FocusEMA', attach(lambda base: FocusEMA(beta=.1))
    yield 'KD', attach(lambda base: KD(base))
    yield 'DeReverseKD', attach(lambda base: KD(base, alpha=1.))
    yield 'TfKD', attach(lambda base: TfKD(base))
    yield 'TfKDReg', attach(lambda base: TfKDReg())
    yield 'CSKD', lambda learn, base: CSKD.wrap(learn)
    yield 'DDGSD', lambda learn, base: DDGSD.wrap(learn)
    yield 'SLA', lambda learn, base: SLA.wrap(learn)
    yield 'SLAJoint', lambda learn, base: SLA.wrap(learn, single=False)
    yield 'FRSKD', on(tiny_resnet, FRSKD.wrap)
    yield 'FRSKDF', on(tiny_resnet, FRSKDF.wrap)
    yield 'FocusFRSKD', on(tiny_resnet, FocusFRSKD.wrap)
    yield 'DropMax', dropmax
    yield 'BYOT', byot
    yield 'BYOTNoFeatures', on(tiny_resnet, lambda learn: BYOT.wrap(learn, feature=0.))
    yield 'ONE', on(tiny_resnet, ONE.wrap)
    yield 'PSKD', attach(lambda base: PSKD())
    yield 'OnlineLabelSmoothing', attach(lambda base: OnlineLabelSmoothing())


def plain(learn:Learner)->Learner:
    "The learner that is left when the method has done its work"
    return learn.unwrap() if hasattr(type(learn), 'unwrap') else learn


def method_of(learn:Learner)->LossTerms: return learn._grab_cbs(LossTerms)[0]


def learners(model, terms, k):
    "Names of the parameters that the term trains"
    model.zero_grad(set_to_none=True)
    terms[k].mean().backward(retain_graph=True)
    return {n for n, p in model.named_parameters() if p.grad is not None and bool(p.grad.any())}


def bn_net(n_out=10):
    return nn.Sequential(nn.Conv2d(1, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, n_out))


def digit_files(path, n=48):
    "Digits as files, a folder a class"
    d = load_digits()
    for i in range(n):
        (path/str(d.target[i])).mkdir(exist_ok=True)
        Image.fromarray((d.images[i]*15).astype('uint8')).resize((16, 16), Image.NEAREST).save(path/str(d.target[i])/f'{i}.png')
    return path


def file_dls(files, **kw):
    block = DataBlock(blocks=(ImageBlock(PILImageBW), CategoryBlock), get_items=sorted_files, get_y=parent_label, splitter=RandomSplitter(.25, seed=0))
    return block.dataloaders(files, bs=8, **kw)


def sorted_files(path): return sorted(get_image_files(path))
