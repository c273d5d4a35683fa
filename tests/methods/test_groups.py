"Loaders whose batches hold groups: which images, how many, with which workers."
import pickle, random
import pytest, torch
from fastai.vision.all import ItemTransform, SkipItemException, TfmdDL
from fastai.callback.data import PartialDL, WeightedDL

from helpers.learners import small
from helpers.methods import digit_files, file_dls
from focusnet_fastai.methods.views import PartnersDL, RotationsDL, ViewsDL

LOADERS = dict(partners=(PartnersDL, 2), views=(ViewsDL, 2), rotations=(RotationsDL, 4))
every_loader = pytest.mark.parametrize('cls,n', LOADERS.values(), ids=list(LOADERS))


@pytest.fixture(scope='module')
def data(): return small()


@pytest.fixture(scope='module')
def files(tmp_path_factory): return digit_files(tmp_path_factory.mktemp('digits'))


def seeded(dl, seed=0):
    dl.rng = random.Random(seed)
    return dl


def test_first_half_is_the_plain_epoch(data):
    plain_dl, pair_dl = seeded(data.train.new()), PartnersDL(seeded(data.train.new()))
    for (x, y), (x2, y2) in zip(plain_dl, pair_dl): assert torch.equal(x, x2[:len(x)]) and torch.equal(y, y2[:len(y)])


def test_incomplete_batches():
    dls = small(n_train=100, bs=32, drop_last=False)
    for cls, n in ((PartnersDL, 2), (ViewsDL, 2), (RotationsDL, 4)):
        dl = cls(dls.train)
        assert [len(y) for _, y in dl] == [n*b for b in (32, 32, 32, 4)] and len(dl) == 4


def test_the_random_state_is_the_plain_loaders(data):
    dl = PartnersDL(data.train)
    old = dl.rng.getstate()
    a = list(dl.get_idxs())
    dl.rng.setstate(old)
    assert list(dl.get_idxs()) == a and dl.rng is data.train.rng


def test_skipped_images_are_noticed():
    class Skips(list):
        def __getitem__(self, i):
            if i == 5: raise SkipItemException
            return torch.zeros(1, 4, 4), torch.tensor(0)
    dl = TfmdDL(Skips(range(16)), bs=8, num_workers=0)
    with pytest.raises(ValueError, match='skipped'): list(ViewsDL(dl))


@every_loader
def test_seeds_and_workers(files, cls, n):
    "The same seed gives the same groups, with and without workers; another seed others"
    runs = []
    for workers, seed in ((0, 0), (2, 0), (0, 1)):
        dl = seeded(cls(file_dls(files, num_workers=workers).train), seed)
        runs.append([(x.cpu(), y.cpu()) for x, y in dl])
    eq = lambda a, b: all(torch.equal(p[0], q[0]) and torch.equal(p[1], q[1]) for p, q in zip(a, b))
    assert len(runs[0]) == len(runs[1]) == 4 and eq(runs[0], runs[1]) and not eq(runs[0], runs[2])
    for x, y in runs[1]: assert len(y) == 8*n and all(torch.equal(y[:8], o) for o in y.split(8))


@every_loader
def test_loaders_can_be_sent_to_a_process(files, cls, n):
    "Pickled and loaded, as spawn and forkserver do, it is the same loader"
    dl = seeded(cls(file_dls(files, num_workers=0).train))
    again = pickle.loads(pickle.dumps(dl))
    for (x, y), (x2, y2) in zip(dl, again): assert torch.equal(x, x2) and torch.equal(y, y2)


@every_loader
@pytest.mark.parametrize('drop_last', [False, True])
def test_a_length_of_its_own(data, cls, n, drop_last):
    "PartialDL: as many batches as it says, of as many images as it takes, no image twice"
    plain = PartialDL(data.train_ds, bs=16, partial_n=40, num_workers=0, drop_last=drop_last)
    dl, sizes = cls(plain), [16, 16] if drop_last else [16, 16, 8]
    for _ in range(2):
        batches = list(dl)
        assert [len(y) for _, y in batches] == [n*o for o in sizes] and len(dl) == len(plain) == len(sizes)
        images = [o.numpy().tobytes() for x, _ in batches for o in x[:len(x)//n]]
        assert len(set(images)) == sum(sizes)


@every_loader
def test_weights_of_images(data, cls, n):
    "WeightedDL: only images with a weight are drawn"
    y = data.train_ds.y
    dl = cls(WeightedDL(data.train_ds, bs=16, wgts=(y == 3).float().numpy(), shuffle=True, num_workers=0))
    seen = torch.cat([b[1] for b in dl])
    assert len(seen) == 128*n and seen.eq(3).all()


def test_what_the_plain_loader_becomes():
    "Batch size, transforms and device of the plain loader count at once"
    class Negative(ItemTransform):
        order = 100
        def encodes(self, b): return (-b[0], *b[1:])
    plain = small(shuffle=False).train
    views, turns = ViewsDL(plain), RotationsDL(plain)
    x = views.one_batch()[0]
    plain.after_batch.add(Negative())
    for dl in (views, turns): assert torch.equal(dl.one_batch()[0][:32], -x[:32])
    plain.bs = 16
    assert len(views) == len(plain) == 8 and len(views.one_batch()[0]) == 32 and len(turns.one_batch()[0]) == 64
    views.to('cpu:0')
    assert plain.device == turns.device == torch.device('cpu:0')


def test_batches_can_be_shown(data):
    for cls, _ in LOADERS.values():
        dl = cls(data.train)
        x, y, its = dl.show_batch(show=False, max_n=4)
        assert len(its) == 4 and its[0][1] in data.vocab


def test_an_epoch_that_was_broken_off():
    "The plain loader's open iterator is not in the way"
    plain = TfmdDL([(torch.zeros(1, 4, 4), torch.tensor(i % 2)) for i in range(16)], bs=4, num_workers=0)
    broken = iter(plain)
    next(broken)
    for cls, n in LOADERS.values(): assert [len(y) for _, y in cls(plain)] == [4*n]*4


def test_refused_loaders(data):
    with pytest.raises(TypeError, match="fastai's.*DataLoader of torch"): PartnersDL(torch.utils.data.DataLoader([1, 2]))
    with pytest.raises(ValueError, match='grouped already, by ViewsDL'): PartnersDL(ViewsDL(data.train))
    with pytest.raises(ValueError, match='with indices'): ViewsDL(TfmdDL(iter([1, 2]), bs=2, num_workers=0))
    with pytest.raises(ValueError, match='with indices'): ViewsDL(TfmdDL([1, 2], bs=None, num_workers=0))
    split = data.train.new()
    split.world_size = 2  # as fastai's DistributedDL has
    with pytest.raises(ValueError, match='split among processes already: wrap the learner first'): ViewsDL(split)
    soft = TfmdDL([(torch.zeros(1), torch.tensor([.5, .5]))]*4, bs=2)
    with pytest.raises(ValueError, match='one class index'): PartnersDL(soft)
