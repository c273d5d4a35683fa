"""The gallery of the methods: formula, cost and advice, read from the page of the registry and from the measured steps, and a picture.

The picture shows what one step of training wants for one handwritten digit: the negative gradient of the method's loss, logit by logit."""
import ast, re, tempfile
from pathlib import Path
from pages import code, plain, root

registry = 'methods.registry'
families = {'Nothing but another loss': ('baseline', 'label_smoothing', 'focal', 'confidence_penalty', 'tf_kd_reg', 'maxsup'),
            'A trained network tells': ('focusnet', 'focusnet_released', 'focusnet_few', 'kd', 'tf_kd', 'de_reverse_kd'),
            'Its own past tells': ('pskd', 'ols', 'focus_class', 'focus_memory', 'focus_ema'),
            'Other images in the batch': ('cs_kd', 'ddgsd', 'sla_sd'),
            'Other parts in the network': ('dropmax', 'frskd', 'frskd_f', 'focus_frskd', 'byot', 'one')}


def classes(page):
    "Method: the class or function behind it, from the source of the registry's page"
    dicts = (o.node.value for o in page.definitions if o.name == 'methods' and isinstance(o.node, ast.Assign))
    return {k.arg: ast.unparse(k.value.args[0] if isinstance(k.value, ast.Call) else k.value) for k in next(dicts).keywords}


def advice(page):
    "Method: what is minimised, and when to take it; from the table of the registry's page"
    text = next(c.text for c in page.cells if c.id == 'when')
    rows = [[o.strip() for o in re.split(r'(?<!\\)\|', line)[1:-1]] for line in text.splitlines() if line.startswith('| `')]
    return {r[0].strip('`'): (r[1], r[2]) for r in rows}


def costs():
    "Method: the measured time of a step, as a multiple of plain training"
    lines = (root/'results/cpu/step_cost.md').read_text(encoding='utf-8').split('\n\n')[0].splitlines()[2:]
    cells = [[o.strip() for o in line.split('|')[1:-1]] for line in lines]
    return {r[0]: r[2] for r in cells} | dict(baseline='1.00')


def card(name, cls, what, when, cost, names, picture):
    "One method"
    full = names.find(cls)
    head = f'{{py:obj}}`{cls} <{full}>`' if full else code(cls)
    shown = [f'![What one step wants for a digit, logit by logit]({picture})'] if picture else []
    facts = f'{head} · a step costs {cost} times plain training' if cost else head
    return '\n\n'.join([f'### {name}', ':::{container} method', *shown, what, plain(when), facts, ':::'])


def page_text(page, names, pictures):
    "The page of the gallery"
    cls, said, cost = classes(page), advice(page), costs()
    listed = [o for names in families.values() for o in names]
    differ = set(listed) ^ set(cls) | set(said) ^ set(cls)
    if differ: raise ValueError(f"The families, the registry and its table do not name the same methods: {', '.join(sorted(differ))}")
    text = ['# Methods', intro]
    for family, members in families.items():
        text.append(f'## {family}')
        text += [card(o, cls[o], *said[o], cost.get(o), names, pictures.get(o)) for o in members]
    return '\n\n'.join(text) + '\n'


intro = """Every training method of the package, by the name that `focusnet-run RECIPE METHOD` and
{py:obj}`find_method <focusnet_fastai.methods.registry.find_method>` know.
$z$ are the logits of the network in training, $p$ its probabilities, $y$ the label, $t$ the true class, $z^b$ and $p^b$ those of a
trained baseline or teacher; a bar stops the gradient.

The bars are drawn by this site's build: a digit that the network in training takes for another one, and what a step of each method
wants for its ten logits, up or down; the true class is filled. Heights are relative to the largest. The cost of a step was measured
([how](/results.ipynb#what-a-step-costs)); training the baseline comes on top where a method needs one. Which of them is best depends
on the data: [results](/results.ipynb) has what was measured."""


# --- pictures ----------------------------------------------------------------------------------------------------------------

def trained(dls, net, epochs):
    "A learner after a short training"
    from fastai.vision.all import Learner, accuracy, set_seed
    set_seed(0)
    learn = Learner(dls, net(), metrics=accuracy, model_dir=tempfile.mkdtemp())
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(epochs, 3e-3)
    return learn


def last_layer(net, n_classes):
    "The layer that gives the logits"
    from torch import nn
    return [m for m in net.modules() if isinstance(m, nn.Linear) and m.out_features == n_classes][-1]


def hard_case(learn, base):
    "A training image that the network gets wrong, and its true class: the one where the baseline hesitates most"
    import torch
    x, y = (torch.stack(list(o)) for o in zip(*[learn.dls.train_ds[i] for i in range(len(learn.dls.train_ds))]))
    x = learn.dls.train.after_batch((x, y))[0]
    x, y = x.as_subclass(torch.Tensor), y.as_subclass(torch.Tensor)
    with torch.no_grad(): z, zb = learn.model.eval()(x), base.model.eval()(x)
    i = int(((zb > 0).sum(1)*(z.argmax(1) != y)).argmax())
    return x[i], int(y[i])


def wishes(name, learn, base, image, **settings):
    "The negative gradient of the loss with respect to the logits of one image, in the first step"
    import torch
    from fastai.vision.all import Callback, CancelFitException, set_seed
    from focusnet_fastai.methods.registry import apply_method, find_method
    found = []
    plain_layer = last_layer(learn.model, 10)
    def keep(module, inputs, output): output.requires_grad and (output.retain_grad(), found.append(output))
    class Stop(Callback):
        def after_backward(self):
            self.near = (self.xb[0].flatten(1)-image.flatten()).abs().sum(1).argmin()
            raise CancelFitException
    set_seed(0)
    learn2, cb = apply_method(find_method(name), learn, base, **settings)
    handle, stop = plain_layer.register_forward_hook(keep), Stop()
    with learn2.no_bar(), learn2.no_logging(): learn2.fit(1, 0., cbs=[*([cb] if cb else []), stop])
    handle.remove()
    grads = [o.grad for o in found if o.grad is not None]
    return -sum(o[stop.near] for o in grads).detach() if grads else None


def draw(wish, true, path):
    "Ten bars, the true class filled"
    import matplotlib.pyplot as plt
    fig, ax = plt.subplots(figsize=(2.6, 1.1))
    fill, edge = ['none']*10, ['#888888']*10
    fill[true] = edge[true] = '#2a9d8f'
    ax.bar(range(10), wish/wish.abs().max(), color=fill, edgecolor=edge)
    ax.axhline(0, color='#888888', linewidth=.8)
    ax.set_xticks(range(10), labels=range(10), color='#888888', fontsize=8)
    ax.set_yticks([])
    ax.tick_params(length=0)
    ax.set(frame_on=False, ylim=(-1.1, 1.1))
    fig.savefig(path, transparent=True, bbox_inches='tight', metadata=dict(Date=None))
    plt.close(fig)


def draw_all(folder):
    "A picture of each method, and the digit itself; name: path in the site"
    import matplotlib, warnings
    warnings.filterwarnings('ignore', message='.*torch.jit.script.*')  # fastai's
    matplotlib.use('agg')
    matplotlib.rcParams['svg.hashsalt'] = 'focusnet'
    from fastai.vision.all import Learner
    from focusnet_fastai.all import digits_dls, thin_resnet
    folder.mkdir(parents=True, exist_ok=True)
    dls, net = digits_dls(n_train=64, bs=64), lambda: thin_resnet(10, n_in=1)
    base, young = trained(dls, net, 12), trained(dls, net, 3)
    image, true = hard_case(young, base)
    found = {}
    for name in [o for names in families.values() for o in names]:
        learn = Learner(dls, net())
        learn.model.load_state_dict(young.model.state_dict())
        wish = wishes(name, learn, base, image)
        if wish is None: continue
        draw(wish, true, folder/f'{name}.svg')
        found[name] = f'/images/methods/{name}.svg'
    return found
