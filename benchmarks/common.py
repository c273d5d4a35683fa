"What the benchmarks of training steps share: learners on noise, a clock for the steps of a fit, and turns (A B A B ...)"
import statistics, time
from contextlib import ExitStack
import torch
from fastai.vision.all import Callback, CancelValidException, CrossEntropyLossFlat, Learner, SGD, set_seed
from focusnet_fastai.data.memory import InMemoryLoaders
from focusnet_fastai.precision import ratio


class TrainOnly(Callback):
    "No validation"
    def before_validate(self): raise CancelValidException()


class Clock(Callback):
    "When each step has ended; what a fit does before the first one is not counted"
    order = 100
    def before_fit(self): self.ends = []
    def after_batch(self):
        if torch.device(self.dls.device).type != 'cpu': torch.cuda.synchronize()
        self.ends.append(time.perf_counter())


def noise_dls(n, size, bs, channels=3, classes=10, device='cpu', augment=None):
    "Images of noise, in memory, the same for training and validation"
    g = torch.Generator().manual_seed(0)
    x, y = torch.randint(0, 256, (n, channels, size, size), generator=g, dtype=torch.uint8), torch.randint(0, classes, (n,), generator=g)
    return InMemoryLoaders.from_tensors((x, y), (x[:bs], y[:bs]), [str(o) for o in range(classes)], bs=bs, device=device, batch_tfms=augment)


def learner(net, size, bs, steps, **kw):
    "A learner whose epoch has `steps`+1 steps; `net` is a function that makes its network"
    set_seed(0)
    return Learner(noise_dls(bs*(steps+1), size, bs, **kw), net(), CrossEntropyLossFlat(), opt_func=SGD, lr=1e-3, cbs=[TrainOnly(), Clock()])


def seconds(learn):
    "Of one epoch, without its first step"
    learn.fit(1)
    return learn.clock.ends[-1] - learn.clock.ends[0]


def epochs_in_turns(learners, rounds):
    "Seconds of an epoch of each learner, `rounds` times in turns, after one that is not timed"
    with ExitStack() as stack:
        for l in learners: stack.enter_context(l.no_bar()); stack.enter_context(l.no_logging())
        for l in learners: seconds(l)
        return list(zip(*[[seconds(l) for l in learners] for _ in range(rounds)]))


def times(a, b):
    "The median of a/b over the turns, with the smallest and the largest"
    each = [x/y for x, y in zip(a, b)]
    return f'{ratio(a, b):.2f} ({min(each):.2f} to {max(each):.2f})'


def rate(seconds, images): return images/statistics.median(seconds)


def write_table(path, df, about):
    "A table in Markdown, with a line about how it was measured"
    lines = [['', *df.columns], ['---']*(1+len(df.columns)), *([k, *map(str, v)] for k, v in zip(df.index, df.values))]
    text = '\n'.join('| ' + ' | '.join(o) + ' |' for o in lines) + f'\n\n{about}\n'
    if path: open(path, 'w').write(text)
    return text
