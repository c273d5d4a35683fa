"""Every method, for the tests that all of them must pass: `(name, make)`, where `make(learn, base)` gives the learner to train.

A method that is only a callback is added to `learn`; one that wraps gives its wrapped learner. A new method gets a line here."""
from fastai.vision.all import Learner
from focusnet_fastai.focusnet import FocusNetCallback
from focusnet_fastai.methods.regularise import ConfidencePenalty, CrossEntropy, Focal, LabelSmoothing
from focusnet_fastai.methods.distil import KD, TfKD, TfKDReg
from focusnet_fastai.methods.views import CSKD, DDGSD, SLA
from focusnet_fastai.methods.dropmax import DropMax, DropMaxNetwork
from focusnet_fastai.methods.frskd import FocusFRSKD, FRSKD, FRSKDF
from focusnet_fastai.methods.byot import BYOT
from focusnet_fastai.methods.one import ONE
from focusnet_fastai.models import lenet5, thin_resnet


def attach(make_cb): return lambda learn, base: learn.add_cb(make_cb(base))


def tiny_resnet(n_out=10, n_in=1, n=8): return thin_resnet(n_out, n_in, n)  # for methods that need stages


def on(net, wrap):
    "A case that trains `net()` in the place of the learner's own network"
    def make(learn, base):
        learn.model = net()
        return wrap(learn)
    make.net = net
    return make


def dropmax(learn, base): return DropMax.wrap(learn)
dropmax.net = lambda: DropMaxNetwork(lenet5(10), 10).deployed  # what is exported is not the plain network


byot = on(tiny_resnet, BYOT.wrap)
byot.of_a_batch = "the distance of BYOT's features is one norm over the batch"


def method_cases():
    yield 'CrossEntropy', attach(lambda base: CrossEntropy())
    yield 'LabelSmoothing', attach(lambda base: LabelSmoothing())
    yield 'Focal', attach(lambda base: Focal())
    yield 'ConfidencePenalty', attach(lambda base: ConfidencePenalty())
    yield 'FocusNet', attach(lambda base: FocusNetCallback(base))
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


def plain(learn:Learner)->Learner:
    "The learner that is left when the method has done its work"
    return learn.unwrap() if hasattr(type(learn), 'unwrap') else learn
