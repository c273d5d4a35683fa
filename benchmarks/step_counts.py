"""What does a training step of a method do, counted instead of timed: operators, multiplications, and bytes that move through memory.

    python benchmarks/step_counts.py                        # plain, FRSKD, BYOT, ONE
    python benchmarks/step_counts.py --methods kd ddgsd

One step of a ResNet-18 on noise of 64 pixels, forward, backward and update, is watched by PyTorch's dispatcher: each operator counts once, with the bytes of
the tensors that it reads and writes (views and reshapes count nothing), and with its floating-point operations where it is a convolution or a matrix
product (those of the forward, times three; PyTorch does not count a backward through grouped convolutions rightly). FLOPs say what the step costs where
multiplying is what takes time, bytes what it costs where memory does, and operators where each call does little. Nothing here depends on how busy the
machine is, so the table is the same each time.
"""
import argparse, warnings
from collections import Counter
warnings.filterwarnings('ignore')

def args():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--methods', nargs='*', default=['frskd', 'frskd_f', 'focus_frskd', 'byot', 'one'], help='names, beside plain training')
    p.add_argument('--bs', type=int, default=16, help='images a batch (default 16)')
    p.add_argument('--size', type=int, default=64, help='pixels (default 64)')
    p.add_argument('--markdown', help='also write the tables to this file')
    return p.parse_args()

groups = dict(convolutions=('convolution', 'convolution_backward', '_slow_conv2d_forward', 'mkldnn_convolution'),
              BatchNorm=('native_batch_norm', 'native_batch_norm_backward', 'batch_norm_backward', '_native_batch_norm_legit', 'cudnn_batch_norm', '_batch_norm_with_update'),
              ReLU=('relu', 'relu_', 'threshold_backward'), pooling=('max_pool2d_with_indices', 'max_pool2d_with_indices_backward', 'mean', '_adaptive_avg_pool2d',
              '_adaptive_avg_pool2d_backward', 'upsample_nearest2d', 'upsample_nearest2d_backward', 'upsample_bilinear2d', 'upsample_bilinear2d_backward', 'constant_pad_nd'))

def main():
    a = args()
    import pandas as pd, torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves
    from torch.utils.flop_counter import FlopCounterMode
    from fastai.vision.all import Callback, Learner, SGD, resnet18, set_seed
    from focusnet_fastai.methods.registry import apply_method, methods, needs_baseline
    from common import TrainOnly, noise_dls, write_table

    class Traffic(TorchDispatchMode):
        "Operators and the bytes that they read and write"
        def __init__(self):
            super().__init__()
            self.n, self.bytes = Counter(), Counter()
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if func.is_view or func.namespace != 'aten': return out
            name = func.overloadpacket.__name__
            tensors = [o for o in tree_leaves((args, kwargs or {}, out)) if isinstance(o, torch.Tensor)]
            if name in ('detach', 'lift_fresh', 'empty', 'empty_like', '_to_copy', 'zeros_like') and not tensors: return out
            self.n[name] += 1
            self.bytes[name] += sum(o.numel()*o.element_size() for o in tensors)
            return out

    class Watch(Callback):
        "Count the second step as a whole"
        order = -100
        def before_batch(self):
            if self.iter == 1: self.learn.traffic = Traffic(); self.learn.traffic.__enter__()
        def after_batch(self):
            if self.iter == 1: self.learn.traffic.__exit__(None, None, None)

    class After(Watch):
        order = 100
        def before_batch(self): pass

    class Before(Watch):
        def after_batch(self): pass

    def learner():
        set_seed(0)
        return Learner(noise_dls(a.bs*2, a.size, a.bs), resnet18(num_classes=10), opt_func=SGD, lr=1e-3, cbs=TrainOnly())

    def counted(name):
        "The traffic of a step, its FLOPs, and the parameters that it trains"
        learn, cb = apply_method(methods[name], learner(), learner() if needs_baseline(methods[name]) else None)
        with learn.no_bar(), learn.no_logging(): learn.fit(1, cbs=[*([cb] if cb is not None else []), Before(), After()])
        model, x = learn.model.train(), learn.dls.train.one_batch()[0].as_subclass(torch.Tensor)
        with FlopCounterMode(display=False) as flops, torch.no_grad(): model(x)
        return learn.traffic, 3*flops.get_total_flops(), sum(p.numel() for p in model.parameters())

    rows, parts, plain = {}, {}, None
    for name in ['baseline', *a.methods]:
        t, flops, params = counted(name)
        total = sum(t.bytes.values())
        plain = plain or (sum(t.n.values()), flops, total)
        n_conv = sum(t.n[o] for o in groups['convolutions'] if 'backward' not in o)
        label = 'plain' if name == 'baseline' else name
        rows[label] = {'operators': f'{sum(t.n.values()):,} ({sum(t.n.values())/plain[0]:.2f})', 'convolutions forward': n_conv, 'GFLOPs': f'{flops/1e9:.0f} ({flops/plain[1]:.2f})',
                       'GB moved': f'{total/1e9:.2f} ({total/plain[2]:.2f})', 'parameters': f'{params/1e6:.1f} M'}
        by = {k: sum(t.bytes[o] for o in names) for k, names in groups.items()}
        parts[label] = {k: f'{v/1e9:.2f}' for k, v in (by | dict(rest=total-sum(by.values()))).items()}
        print(label, rows[label], t.bytes.most_common(12) if name != 'baseline' else '', flush=True)
    about = f'`python benchmarks/step_counts.py`: one step of a ResNet-18 at {a.size} pixels, {a.bs} images a batch, torch {torch.__version__}; in brackets as multiples of plain training.'
    text = write_table(None, pd.DataFrame(rows).T, about) + '\n' + write_table(None, pd.DataFrame(parts).T, 'Gigabytes read and written by kind of operator.')
    print('\n' + text)
    if a.markdown: open(a.markdown, 'w').write(text)

if __name__ == '__main__': main()
