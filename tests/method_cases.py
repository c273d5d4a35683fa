"""Every method, for the tests that all of them must pass: `(name, make)`, where `make(learn, base)` gives the learner to train.

A method that is only a callback is added to `learn`; one that wraps gives its wrapped learner. A new method gets a line here."""
from fastai.vision.all import Learner
from focusnet_fastai.focusnet import FocusNetCallback
from focusnet_fastai.methods.regularise import ConfidencePenalty, CrossEntropy, Focal, LabelSmoothing
from focusnet_fastai.methods.distil import KD, TfKD, TfKDReg
from focusnet_fastai.methods.views import CSKD, DDGSD, SLA


def attach(make_cb): return lambda learn, base: learn.add_cb(make_cb(base))


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


def plain(learn:Learner)->Learner:
    "The learner that is left when the method has done its work"
    return learn.unwrap() if hasattr(type(learn), 'unwrap') else learn
