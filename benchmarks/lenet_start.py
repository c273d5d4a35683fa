"""With which start does LeNet-5 train at the paper's rate of 0.1?

    python benchmarks/lenet_start.py --starts pytorch he
    python benchmarks/lenet_start.py --starts glorot tanh

All images of MNIST, 128 a batch, SGD with momentum 0.9 and weight decay 1e-4, 300 steps. `pytorch`, `he` and `glorot` are initialisations
of `lenet5`, with ReLU and max-pooling; `tanh` is the network of 1998, with tanh and average pooling, and PyTorch's initialisation. A
network is at chance whose mean loss over the last fifty steps is above 2.2 (that of guessing is 2.30).
"""
import argparse, json, warnings
from pathlib import Path
warnings.filterwarnings('ignore')


def args():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--starts', nargs='+', default=['pytorch', 'glorot', 'he', 'tanh'], help='default: all')
    p.add_argument('--seeds', type=int, default=32, help='how many (default 32)')
    p.add_argument('--steps', type=int, default=300, help='of a training (default 300)')
    p.add_argument('--runs', default='runs/lenet_start', help='folder of what is done (default runs/lenet_start)')
    p.add_argument('--markdown', help='also write the table of all that is done to this file')
    p.add_argument('--table', action='store_true', help='only show what is done')
    return p.parse_args()


def images():
    "All training images, as the network gets them, and labels"
    dls = mnist_dls(bs=128)
    batches = list(dls.train.new(shuffle=False, drop_last=False))
    return [torch.cat([b[i] for b in batches]).as_subclass(torch.Tensor) for i in (0, 1)]


def network(start):
    "A LeNet-5 with its start"
    net = lenet5(10)
    if start == 'tanh':
        other = {nn.ReLU: nn.Tanh, nn.MaxPool2d: lambda: nn.AvgPool2d(2)}
        return nn.Sequential(*[other.get(type(o), lambda: o)() for o in net])
    init = dict(he=nn.init.kaiming_normal_, glorot=nn.init.xavier_uniform_).get(start)
    if init: apply_init(net, init)
    return net


def losses(start, seed, steps, x, y):
    "The loss of each step"
    torch.manual_seed(seed)
    net, order, res = network(start), torch.randperm(len(y)), []
    opt = torch.optim.SGD(net.parameters(), .1, momentum=.9, weight_decay=1e-4)
    for b in order.split(128)[:steps]:
        loss = F.cross_entropy(net(x[b]), y[b])
        opt.zero_grad()
        loss.backward()
        opt.step()
        res.append(loss.item())
    return res


def table(records):
    "Markdown"
    lines = ['| start | seeds | at chance | loss of the others, median (largest) |', '|---|---|---|---|']
    for start in dict.fromkeys(o['start'] for o in records):
        all_ = [o['loss'] for o in records if o['start'] == start]
        good = [o for o in all_ if o < 2.2]
        lines.append(f'| {start} | {len(all_)} | {len(all_)-len(good)} | {np.median(good):.2f} ({max(good):.2f}) |')
    return '\n'.join(lines)


def main():
    global np, torch, nn, F, apply_init, mnist_dls, lenet5
    a = args()
    import numpy as np, torch, torch.nn.functional as F
    from torch import nn
    from fastai.vision.all import apply_init
    from focusnet_fastai.data.small import mnist_dls
    from focusnet_fastai.models import lenet5
    torch.set_num_threads(1)
    log = Path(a.runs)/'lenet_start.jsonl'
    log.parent.mkdir(parents=True, exist_ok=True)
    read = lambda: [json.loads(o) for o in log.read_text().splitlines()] if log.exists() else []
    if not a.table:
        x, y = images()
        kept = {(o['start'], o['seed']) for o in read() if o['steps'] == a.steps}
        for start in a.starts:
            for seed in range(a.seeds):
                if (start, seed) in kept: continue
                loss = sum(losses(start, seed, a.steps, x, y)[-50:])/50
                with open(log, 'a') as f: f.write(json.dumps(dict(start=start, seed=seed, steps=a.steps, loss=round(loss, 4)))+'\n')
    text = table(sorted(read(), key=lambda o: (['pytorch', 'glorot', 'he', 'tanh'].index(o['start']), o['seed'])))
    print(text)
    if a.markdown: Path(a.markdown).write_text(text+'\n')


if __name__ == '__main__': main()
