"A memory of images whose loader reads them in a worker process, started in each way that is named: `python memory_workers.py fork spawn`"
import multiprocessing, random, sys, warnings
warnings.filterwarnings('ignore')
import torch
torch.set_num_threads(1)
from fastai.vision.all import CrossEntropyLossFlat, DataLoaders, Learner, nn, set_seed, TfmdDL
from focusnet_fastai.data.digits import digits_dls
from focusnet_fastai.focusnet import FocusNetCallback
from focusnet_fastai.self_memory import Memory


def remembered(items, num_workers, epochs):
    "What is known of each image after some epochs, and how often it came"
    set_seed(0)
    train = TfmdDL(items, bs=8, shuffle=True, num_workers=num_workers)
    train.rng = random.Random(0)
    dls = DataLoaders(train, TfmdDL(items[:8], bs=8, num_workers=0))
    dls.c = 10
    learn, memory = Learner(dls, nn.Sequential(nn.Flatten(), nn.Linear(1024, 10)), loss_func=CrossEntropyLossFlat()), Memory()
    with learn.no_bar(), learn.no_logging(): learn.fit(epochs, 1e-3, cbs=FocusNetCallback(memory))
    return memory.store.get(list(range(len(items)))), memory.seen


if __name__ == '__main__':
    ds = digits_dls(n_train=20, device='cpu').train_ds
    items = [(x/255, y) for x, y in zip(ds.x.float(), ds.y)]
    multiprocessing.set_forkserver_preload(['fastai.vision.all', 'focusnet_fastai.self_memory'])
    want = {epochs: remembered(items, 0, epochs) for epochs in (1, 2)}
    for method in sys.argv[1:]:
        multiprocessing.set_start_method(method, force=True)
        epochs = 1 if method == 'spawn' else 2  # each epoch starts its worker anew, which imports all of it where it is spawned
        got, seen = remembered(items, 1, epochs)
        if torch.equal(got, want[epochs][0]) and seen.tolist() == want[epochs][1].tolist() == [epochs]*20: print(method)
