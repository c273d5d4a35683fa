"The commands as a user types them: real processes, real files, real mistakes."
import json, os, re, shutil, signal, subprocess, sys, time, zipfile
from pathlib import Path
import pytest, torch
from fastai.vision.all import Learner, load_learner
from focusnet_fastai.app.cli import focusnet_figure, focusnet_pack, focusnet_run, focusnet_table, focusnet_train
from focusnet_fastai.app.photo_network import digit_photos, photo_learner
from focusnet_fastai.app.checks import result_files
from focusnet_fastai.app.photo_files import GivenBaseline
from focusnet_fastai.app.photo_setup import photo_settings
from focusnet_fastai.focusnet import focus_settings
from focusnet_fastai.app.train_photos import train_photos
from helpers import fresh

bindir = Path(sys.executable).parent
quick = ('--no-pretrained', '--size', '32', '--workers', '0')
tiny = ('--arch', 'squeezenet1_1')
pytestmark = pytest.mark.usefixtures('own_home')


def command(name, *args, **kw):
    "In a new interpreter; `fresh.command` is quicker"
    return subprocess.run([bindir/name, *map(str, args)], capture_output=True, text=True, timeout=300, **kw)


small = dict(size=32, pretrained=False, workers=0, arch='squeezenet1_1', precision='no')  # a training in this process


def mistake(f, *args, **kw):
    "Call a command in this process; its message and exit code"
    with pytest.raises(SystemExit) as e: f(*args, **kw)
    return str(e.value)


@pytest.fixture(scope='module')
def photos(tmp_path_factory):
    "Three classes of digits as PNG files"
    return digit_photos(tmp_path_factory.mktemp('cli')/'photos', (3, 8, 9), n=10)


@pytest.fixture(scope='module')
def few(tmp_path_factory): return digit_photos(tmp_path_factory.mktemp('cli')/'few', (3, 8), n=10)


@pytest.fixture(scope='module')
def trained(photos):
    "A training from the shell, on a copy of the photos with a damaged one"
    folder = photos.parent/'damaged'
    shutil.copytree(photos, folder)
    (folder/'3'/'zz.png').write_bytes(b'no image')
    res = command('focusnet-train', 'damaged', '--epochs', 2, *quick, '--out', 'out', cwd=photos.parent)
    assert res.returncode == 0, res.stderr[-3000:]
    return photos.parent/'out', res


@pytest.mark.slow
def test_train_writes_everything(trained):
    out, res = trained
    assert sorted(o.name for o in out.iterdir()) == sorted(result_files)
    assert '\r' not in res.stdout and not res.stderr, res.stderr
    lines = res.stdout.splitlines()
    assert sum(o.startswith(('epoch 1/2', 'epoch 2/2')) for o in lines) == 4
    assert any(o.startswith('left out: damaged/3/zz.png: ') for o in lines) and 'damaged: 3 classes, 24 photos for training, 6 for validation, 4 a batch' in lines
    assert [('entropy' in o) for o in lines if o.startswith('epoch 2/2')] == [False, True]
    html = (out/'report.html').read_text(encoding='utf-8')
    about = json.loads((out/'focusnet.json').read_text())
    kept = [o for o in lines if 'Photos are decoded once: ' in o]
    assert len(kept) == 1 and 'kept_photos' in kept[0] and kept[0].startswith('This network trains ') and about['precision'] in ('bf16', 'float32')
    assert f"<td>{about['precision']}</td>" in html.replace(' class="text"', '')
    assert about['arch'] == 'resnet18' and about['classes'] == ['3', '8', '9'] and about['size'] == 32
    for r in about['results'].values(): assert f"{r['accuracy']:.2%}" in html and f"{r['ece']:.4f}" in html
    assert f"Fixed: {about['fixed']}. Broken: {about['broken']}." in html and 'damaged' in html and about['bs'] == 4
    assert about['loss'] == dict(alpha=.5, beta=1., rule='released', label_smoothing=0., detach=False)
    right = {k: v['accuracy'] for k, v in about['results'].items()}
    best = 'focusnet.pkl' if right['FocusNet'] > right['Baseline'] else 'baseline.pkl'
    assert about['keep'] == best and f'load_learner(&#x27;{best}&#x27;)' in html or f"load_learner('{best}')" in html
    assert lines[-2].startswith('Keep ') and lines[-2].endswith(f'That is {Path("out")/best}') and lines[-2].split(' That is')[0] in html
    assert all(o.startswith('data:') for o in re.findall(r'(?:src|href)="([^"]*)"', html)) and '3/zz.png' in html and 'resnet18' in html


@pytest.mark.slow
def test_a_training_says_what_would_help(trained):
    "Verdicts and doubtful labels of the better network, in the report and as JSON"
    out, _ = trained
    found = json.loads((out/'diagnosis.json').read_text())
    html = (out/'report.html').read_text(encoding='utf-8')
    assert found['classes'] == ['3', '8', '9'] and found['training_images'] == 24 and found['label_evidence'] == 'training'
    assert 'Which cause, what remedy' in html and 'Labels that look wrong' in html
    about, wrong = json.loads((out/'focusnet.json').read_text()), sum(o['count'] for o in found['pairs'])
    kept = about['results']['FocusNet' if about['keep'] == 'focusnet.pkl' else 'Baseline']
    assert wrong == round(6*(1-kept['accuracy']))


@pytest.mark.slow
def test_a_network_that_learns_from_itself(few, tmp_path):
    "Recommended for pretrained networks; by name for others: the baseline is only compared with"
    lines, out = [], tmp_path/'out'
    train_photos(few, out, epochs=2, settings='classes', log=lines.append, **small)
    about, html = json.loads((out/'focusnet.json').read_text()), (out/'report.html').read_text(encoding='utf-8')
    assert about['loss'] == dict(alpha=1., beta=0., rule='soft', label_smoothing=0., detach=False, reference='classes')
    assert 'against its own answers by class' in html and 'it confuses itself' in html
    attention = [re.search(r'attention (\S+)', o) for o in lines if o.startswith('epoch')]
    assert attention[:2] == [None, None] and float(attention[2][1]) == 0 < float(attention[3][1])  # in the first epoch it has said nothing yet
    assert photo_settings('recommended', True, 2) == about['loss'] and photo_settings('recommended', False, 2) == focus_settings['few']
    assert photo_settings('recommended', False, 21) == focus_settings['released']


@pytest.mark.slow
def test_corrected_labels(photos, tmp_path):
    "The table that a report writes: a moved photograph and one that is left out; a table that is not there is named"
    a, b = sorted((photos/'3').iterdir())[:2]
    table = tmp_path/'labels.csv'
    table.write_text(f'file,label\n3/{a.name},8\n3/{b.name},drop\n')
    learn, _ = train_photos(photos, tmp_path/'out', epochs=1, labels=table, log=lambda o: None, **small)
    files = [*learn.dls.train_ds.items, *learn.dls.valid_ds.items]
    assert len(files) == 29 and b not in files
    ds = learn.dls.train_ds if a in list(learn.dls.train_ds.items) else learn.dls.valid_ds
    assert learn.dls.vocab[ds[list(ds.items).index(a)][1]] == '8'
    assert 'none.csv' in mistake(focusnet_train, str(photos), labels=str(tmp_path/'none.csv'), out=str(tmp_path/'no'))


@pytest.mark.slow
def test_a_fresh_process_predicts(trained):
    "The exported learner in another process, in another folder; the weights without running code"
    out, _ = trained
    image = sorted((out.parent/'photos'/'8').iterdir())[0]
    code = f'''
import torch, json
from fastai.vision.all import load_learner
learn = load_learner({str(out/'focusnet.pkl')!r})
with learn.no_bar(): name,_,probs = learn.predict({str(image)!r})
weights = torch.load({str(out/'focusnet.pth')!r}, weights_only=True)
same = all(torch.equal(v, weights[k]) for k,v in learn.model.state_dict().items())
print(json.dumps([name, probs.sum().item(), same, list(learn.dls.vocab), [type(o).__name__ for o in learn.cbs]]))
'''
    res = fresh.python(code, cwd=out.parent)
    assert res.returncode == 0, res.stderr[-2000:]
    name, total, same, vocab, cbs = json.loads(res.stdout.splitlines()[-1])
    assert name in vocab and vocab == ['3', '8', '9'] and abs(total-1) < 1e-4 and same
    assert not {'FocusNetCallback', 'EpochLine'} & set(cbs)
    sizes = [(out/f'{n}.pkl').stat().st_size for n in ('baseline', 'focusnet')]
    assert abs(sizes[0]-sizes[1]) < 1e5  # no baseline inside


@pytest.mark.slow
def test_train_against_a_given_baseline(photos, tmp_path):
    "Weights with their JSON file, and an exported learner; a second training into the same folder is refused"
    out, lines = tmp_path/'base', []
    train_photos(photos, out, epochs=1, **small)
    learn, base = train_photos(photos, tmp_path/'a', baseline=out/'baseline.pth', epochs=1, pretrained=False, workers=0, log=lines.append)
    weights = torch.load(out/'baseline.pth', weights_only=True)
    assert all(torch.equal(v.cpu(), weights[k]) for k, v in base.model.state_dict().items())
    assert sorted(o.name for o in (tmp_path/'a').iterdir()) == ['diagnosis.json', 'focusnet.json', 'focusnet.pkl', 'focusnet.pth', 'report.html']
    assert 'from baseline.pth' in (tmp_path/'a'/'report.html').read_text(encoding='utf-8') and 'Baseline:' not in ' '.join(map(str, lines))
    assert GivenBaseline(out/'baseline.pkl').size == 32
    assert not [o for o in lines if 'can run code' in o]
    msg = mistake(focusnet_train, str(photos), out=str(tmp_path/'a'), baseline=str(out/'baseline.pkl'))
    assert 'holds results already (focusnet.pkl' in msg and '--overwrite' in msg
    before = (tmp_path/'a'/'focusnet.pth').read_bytes()
    train_photos(photos, tmp_path/'a', baseline=out/'baseline.pkl', epochs=1, seed=1, pretrained=False, workers=0, overwrite=True, log=lines.append)
    assert (tmp_path/'a'/'focusnet.pth').read_bytes() != before
    assert [o for o in lines if 'baseline.pkl is loaded as an exported learner, which can run code' in o]


@pytest.mark.slow
def test_a_seed_gives_the_same_weights(few, tmp_path):
    runs = [train_photos(few, tmp_path/f'{i}', epochs=1, seed=s, log=lambda o: None, **small)[0] for i, s in enumerate((5, 5, 6))]
    a, b, c = [torch.cat([p.detach().flatten().cpu() for p in o.model.parameters()]) for o in runs]
    assert torch.equal(a, b) and not torch.equal(a, c)


@pytest.mark.slow
def test_precision_and_cache_as_asked_for(photos, tmp_path):
    "In bfloat16, with pictures in a folder; what is exported is plain float32. And without either"
    from focusnet_fastai.app.train_photos import train_photos
    from focusnet_fastai.data.photo_cache import KeptPhotosDL
    two, lines = digit_photos(tmp_path/'two', (3, 8), n=8), []
    how = dict(epochs=1, size=32, pretrained=False, workers=0, arch='squeezenet1_1', log=lambda o: lines.append(str(o)))
    learn, _ = train_photos(two, tmp_path/'a', precision='bf16', cache=tmp_path/'kept', **how)
    assert [o for o in lines if o.startswith('This network trains in bf16, as asked for. Photos are decoded once: ') and str(tmp_path/'kept') in o]
    assert type(learn.dls.train) is KeptPhotosDL and (tmp_path/'kept'/'pictures.bytes').stat().st_size > 0
    assert json.loads((tmp_path/'a'/'focusnet.json').read_text())['precision'] == 'bf16'
    assert not [o for o in learn.cbs if type(o).__name__ in ('HalfPrecision', 'ChannelsLast')] and all(p.is_contiguous() for p in learn.model.parameters())
    lines.clear()
    learn, _ = train_photos(two, tmp_path/'b', precision='no', cache=False, **how)
    assert 'This network trains in float32, as asked for. Photos are decoded in every epoch.' in lines and type(learn.dls.train) is not KeptPhotosDL


@pytest.mark.slow
def test_mistakes_end_with_a_sentence(trained, photos, tmp_path):
    "Each before anything is trained or written"
    out, _ = trained
    one, four = digit_photos(tmp_path/'one', (3,), n=4), digit_photos(tmp_path/'four', (1, 3, 8, 9), n=4)
    other = digit_photos(tmp_path/'other', (1, 2, 3), n=4)
    (tmp_path/'garbage.pkl').write_bytes(b'garbage')
    (tmp_path/'garbage.pth').write_bytes(b'garbage')
    (tmp_path/'half.pth').write_bytes((out/'baseline.pth').read_bytes()[:100_000])
    shutil.copy(out/'baseline.pth', tmp_path/'alone.pth')
    (tmp_path/'file').write_text('x')
    for e in ('pkl', 'pth'):
        data = bytearray((out/f'baseline.{e}').read_bytes())
        data[len(data)//2] ^= 1
        (tmp_path/f'flipped.{e}').write_bytes(data)
    shutil.copy(out/'baseline.pth', tmp_path/'odd.pth')
    (tmp_path/'odd.json').write_text('{"arch": "resn')
    (tmp_path/'note.csv').write_text('hello\nworld\n')
    new, given = str(tmp_path/'new'), dict(pretrained=False, workers=0, size=32)
    cases = [
        ((tmp_path/'nowhere',), {}, 'There is no folder'), ((tmp_path/'file',), {}, 'is a file'), ((one,), {}, 'one class only'),
        ((photos,), dict(arch='resnet81'), 'did you mean resnet'), ((photos,), dict(arch='vit_b_16'), 'cannot make a classifier of vit_b_16'),
        ((photos,), dict(size=8), '--size must be at least 32'), ((photos,), dict(epochs=0), '--epochs must be'), ((photos,), dict(bs=1), '--bs must be'),
        ((photos,), dict(lr=-1.), '--lr must be'), ((photos,), dict(valid_pct=1.), '--valid-pct must'), ((photos,), dict(rule='warm'), "--rule must be"),
        ((photos,), dict(precision='half'), "--precision must be one of 'auto', 'bf16'"), ((photos,), dict(precision='fp16'), "use 'bf16', or float32 (None; in a shell: no)"),
        ((photos,), dict(cache=str(photos/'3')), 'which lies among the photos: choose another folder (--cache)'),
        ((photos,), dict(settings='best'), "--settings must be one of 'recommended', 'paper'"), ((photos,), dict(seeds=0), '--seeds must be at least 1'), ((photos,), dict(alpha=-1.), '--alpha must be'),
        ((photos,), dict(beta=-1.), '--beta must be at least 0'), ((photos,), dict(max_left_out=-3.), '--max-left-out must lie between 0 and 1'), ((photos,), dict(max_left_out=7.), '--max-left-out must lie'),
        ((photos,), dict(labels=str(tmp_path/'note.csv')), "note.csv has no column 'file': its columns must be 'file' and 'label', but are 'hello'"),
        ((photos,), dict(out=str(photos/'out')), 'among the photos'), ((photos,), dict(out=str(tmp_path/'file')), 'is a file'),
        ((photos,), dict(out=str(tmp_path/'file'/'x')), 'cannot be written'),
        ((photos,), dict(baseline='no.pkl'), 'no file no.pkl'), ((photos,), dict(baseline=str(tmp_path/'garbage.pkl')), 'cannot be loaded'),
        ((photos,), dict(baseline=str(out/'report.html'), arch='resnet18'), 'cannot be read as weights'), ((photos,), dict(baseline=str(tmp_path/'alone.pth')), '--arch'),
        ((photos,), dict(baseline=str(tmp_path/'garbage.pth'), arch='resnet18'), 'garbage.pth'), ((photos,), dict(baseline=str(tmp_path/'flipped.pkl')), 'flipped.pkl is damaged'),
        ((photos,), dict(baseline=str(tmp_path/'flipped.pth'), arch='resnet18'), 'flipped.pth is damaged'), ((photos,), dict(baseline=str(tmp_path/'odd.pth')), 'odd.json'),
        ((photos,), dict(baseline=str(tmp_path/'half.pth'), arch='resnet18'), 'half.pth'),
        ((four,), dict(baseline=str(tmp_path/'alone.pth'), arch='resnet18'), 'do not belong to a resnet18 for 4 classes'),
        ((photos,), dict(baseline=str(tmp_path/'alone.pth'), arch='resnet34'), 'do not belong to a resnet34'),
        ((other,), dict(baseline=str(out/'baseline.pth')), 'classes that the baseline does not know'),
        ((other,), dict(baseline=str(out/'baseline.pkl')), 'classes that the baseline does not know'),
        ((four,), dict(baseline=str(out/'baseline.pkl')), 'The baseline knows 3 classes')]
    for args, kw, words in cases:
        msg = mistake(focusnet_train, *map(str, args), **{**given, 'out': new, **kw})
        assert msg.startswith('focusnet-train: ') and words in msg, (kw, msg)
    assert not os.path.exists(new)


class Evil:
    "Runs code when it is unpickled"
    def __init__(self, path): self.path = path
    def __reduce__(self): return Path.touch, (self.path,)


@pytest.mark.slow
@pytest.mark.parametrize('name', ['weights.PTH', 'weights.bin', 'weights.ckpt', 'weights', 'weights.pkl', 'weights.PKL'])
def test_weights_are_weights_whatever_their_ending(trained, photos, tmp_path, name):
    out, _ = trained
    shutil.copy(out/'baseline.pth', tmp_path/name)
    given = GivenBaseline(tmp_path/name, 'resnet18')
    assert given.learn is None
    if not name.lower().endswith('.pkl'):  # there code may run, after it was said
        torch.save(Evil(tmp_path/'ran'), tmp_path/name)
        msg = mistake(focusnet_train, str(photos), out=str(tmp_path/'new'), baseline=str(tmp_path/name), arch='resnet18', pretrained=False, size=32, workers=0)
        assert name in msg
    assert not (tmp_path/'ran').exists()


@pytest.mark.slow
def test_a_training_that_diverges(few, tmp_path):
    "Is stopped with its epoch: a baseline is not kept then, a good one stays"
    from focusnet_fastai.app.photo_network import Diverged
    how, lines = dict(epochs=3, log=lambda o: lines.append(str(o)), **small), []
    with pytest.raises(Diverged, match='^Baseline: The training diverged in epoch 1 of 3: .*Nothing was written.'): train_photos(few, tmp_path/'a', lr=1e9, **how)
    assert not list((tmp_path/'a').iterdir()) and not [o for o in lines if o.startswith('epoch 2/3')]
    good = train_photos(few, tmp_path/'b', **{**how, 'epochs': 1})
    kept = {o.name: o.read_bytes() for o in (tmp_path/'b').iterdir()}
    with pytest.raises(ValueError, match='The training (has )?diverged in epoch'): train_photos(few, tmp_path/'c', baseline=tmp_path/'b'/'baseline.pth', lr=1e9, **how)
    assert good and {o.name: o.read_bytes() for o in (tmp_path/'b').iterdir()} == kept


@pytest.mark.slow
def test_several_seeds(few, tmp_path):
    "A folder each, another network each, the same photos for validation, and one verdict"
    lines = []
    train_photos(few, tmp_path/'out', epochs=1, seeds=2, seed=4, settings='paper', log=lambda o: lines.append(str(o)), **small)
    found = json.loads((tmp_path/'out'/'seeds.json').read_text())
    assert [o['seed'] for o in found['seeds']] == [4, 5] and sorted(o.name for o in (tmp_path/'out').iterdir()) == ['seed-4', 'seed-5', 'seeds.json']
    kind = 'FocusNet' if sum(o['FocusNet']-o['Baseline'] for o in found['seeds']) > 0 else 'Baseline'
    best = max(found['seeds'], key=lambda o: o[kind])
    assert Path(found['keep']) == tmp_path/'out'/f"seed-{best['seed']}"/f'{kind.lower()}.pkl'
    assert found['verdict'] in lines and '95 % interval' in found['verdict'] and lines[-1].startswith(f"Keep {found['keep']}")
    about = [json.loads((tmp_path/'out'/f'seed-{i}'/'focusnet.json').read_text()) for i in (4, 5)]
    assert all(o['loss'] == dict(alpha=1., beta=1., rule='positive', label_smoothing=0., detach=False) for o in about)
    first = [next(iter(torch.load(tmp_path/'out'/f'seed-{i}'/'baseline.pth', weights_only=True).values())) for i in (4, 5)]
    assert not torch.equal(*first)
    assert 'holds results already (seed-4' in mistake(focusnet_train, str(few), out=str(tmp_path/'out'), seeds=2, seed=4)


def test_an_unknown_network_is_noticed_first(photos, tmp_path):
    lines = []
    with pytest.raises(ValueError, match='did you mean') as e: train_photos(photos, tmp_path/'out', arch='resnet19', log=lines.append)
    names = str(e.value).split('did you mean ')[1].rstrip('?').split(', ')
    assert not lines and len(names) == len(set(names)) > 1 and 'resnet18' in names


def test_a_file_that_vanishes(photos, tmp_path):
    "While worker processes read: one sentence that names it"
    from focusnet_fastai.app.checks import message
    from focusnet_fastai.data.folder import folder_dls
    folder = tmp_path/'gone'
    shutil.copytree(photos, folder)
    dls = folder_dls(folder, size=32, bs=4, num_workers=1)
    bad = Path(dls.valid_ds.items[0])
    bad.unlink()
    with pytest.raises(Exception) as e: list(dls.valid)
    text = message(e.value)
    assert bad.name in text and 'Traceback' not in text and '\n' not in text and len(text) < 300, text


@pytest.mark.slow
def test_names_that_cannot_be_printed(tmp_path):
    "On a console of code page 1252: class folders in Chinese, and with bytes that are no UTF-8"
    photos = digit_photos(tmp_path/'photos', (3, 8), n=6)
    (photos/'3').rename(photos/'\u72ac')
    try: (photos/'8').rename(os.fsdecode(os.fsencode(photos)+b'/caf\xe9'))
    except OSError: pass  # a file system that takes UTF-8 only
    (photos/'\u72ac'/'\u732b.png').write_bytes(b'no image')
    res = fresh.command('focusnet-train', photos, '--epochs', 1, *quick, *tiny, '--out', tmp_path/'out', env={**os.environ, 'PYTHONIOENCODING': 'cp1252'}, encoding='cp1252')
    assert res.returncode == 0 and 'Traceback' not in res.stderr, res.stderr[-2000:]
    assert 'left out: ' in res.stdout and '?.png' in res.stdout
    html = (tmp_path/'out'/'report.html').read_text(encoding='utf-8')
    assert '\u72ac' in html and 'caf\xe9' in html  # bytes that are no UTF-8 are read as code page 1252
    assert set(load_learner(tmp_path/'out'/'focusnet.pkl').dls.vocab) == {'\u72ac', 'caf\xe9'}


@pytest.mark.slow
def test_weights_that_cannot_be_fetched(photos, tmp_path, monkeypatch):
    "An empty cache, and a proxy that nobody listens on"
    from focusnet_fastai.data.folder import folder_dls
    old = torch.hub.get_dir()
    for o in ('http_proxy', 'https_proxy', 'HTTP_PROXY', 'HTTPS_PROXY'): monkeypatch.setenv(o, 'http://127.0.0.1:9')
    torch.hub.set_dir(tmp_path)
    try:
        with pytest.raises(ValueError, match='pretrained weights of resnet18 cannot be had') as e: photo_learner(folder_dls(photos, size=32, num_workers=0))
    finally: torch.hub.set_dir(old)
    assert '`pretrained=False`' in str(e.value) and str(tmp_path) in str(e.value)


def test_wrong_arguments_and_bad_folder_from_a_shell(tmp_path):
    res = command('focusnet-train', 'photos', '--epochs', 'many')
    assert res.returncode == 2 and 'invalid int value' in res.stderr
    res = command('focusnet-train', 'nowhere', cwd=tmp_path)
    assert res.returncode == 1 and res.stderr.strip() == 'focusnet-train: There is no folder nowhere' and not list(tmp_path.iterdir())
    (tmp_path/'photos').mkdir()
    (tmp_path/'out').mkdir()
    (tmp_path/'out'/'report.html').touch()
    for args, words in (('--epochs', '0'), '--epochs must be at least 1'), (('--out', 'out'), 'out holds results already (report.html)'):
        res = command('focusnet-train', 'photos', *args, cwd=tmp_path)
        assert res.returncode == 1 and words in res.stderr and not res.stdout, (args, res)  # before fastai was loaded


@pytest.mark.slow
def test_a_full_disk(few, tmp_path):
    "No file may grow beyond 1 MB: a sentence, and no half files"
    res = fresh.command('focusnet-train', few, '--epochs', 1, *quick, *tiny, '--out', tmp_path/'out', largest=2**20)
    assert res.returncode == 1 and 'Traceback' not in res.stderr and re.search(r'^focusnet-train: .*File too large', res.stderr.strip()), res.stderr
    assert not list((tmp_path/'out').iterdir())


@pytest.mark.slow
def test_ctrl_c(few, tmp_path):
    "While FocusNet is trained, with worker processes, as a terminal sends it to all of them"
    p = fresh.started('focusnet-train', few, '--no-pretrained', '--size', '32', '--workers', '1', *tiny, '--epochs', '15', '--out', tmp_path/'out')
    end = time.monotonic() + 120
    while '\nFocusNet:' not in p.printed and time.monotonic() < end: time.sleep(.02)
    os.killpg(p.pid, signal.SIGINT)
    res = p.wait()
    assert res.returncode == 130 and 'Traceback' not in res.stderr, (res.returncode, res.stderr)
    assert f"focusnet-train: stopped. The baseline is kept: --baseline {tmp_path/'out'/'baseline.pkl'} goes on from there." in res.stderr
    assert sorted(o.name for o in (tmp_path/'out').iterdir()) == ['baseline.json', 'baseline.pkl', 'baseline.pth']
    assert isinstance(load_learner(tmp_path/'out'/'baseline.pkl'), Learner)


@pytest.mark.slow
def test_ctrl_c_in_the_baseline(few, tmp_path):
    "After some epochs it is kept, and FocusNet can be trained against it; the same command anew writes over it, and takes it away"
    out, args = tmp_path/'out', ('--no-pretrained', '--size', '32', '--workers', '0', '--precision', 'no', *tiny)
    p = fresh.started('focusnet-train', few, *args, '--epochs', '500', '--out', out)
    end = time.monotonic() + 240
    while '\nepoch 3/500' not in p.printed and time.monotonic() < end: time.sleep(.02)
    os.killpg(p.pid, signal.SIGINT)
    res = p.wait()
    assert res.returncode == 130 and 'Traceback' not in res.stderr, (res.returncode, res.stderr)
    n, file = int(re.search(r'stopped. The baseline of (\d+) epochs is kept: --baseline', res.stderr)[1]), out/'unfinished.pkl'
    assert f"is kept: --baseline {file} trains FocusNet against it as it is." in res.stderr and n >= 2
    assert sorted(o.name for o in out.iterdir()) == ['unfinished.json', 'unfinished.pkl', 'unfinished.pth']
    assert json.loads((out/'unfinished.json').read_text())['finished_epochs'] == n
    _, base = train_photos(few, tmp_path/'against', baseline=file, epochs=1, pretrained=False, workers=0, log=lambda o: None)
    assert all(torch.equal(v.cpu(), torch.load(out/'unfinished.pth')[k]) for k, v in base.model.state_dict().items())
    train_photos(few, out, epochs=1, log=lambda o: None, **small)
    assert not list(out.glob('unfinished*')) and (out/'focusnet.pkl').exists()


@pytest.mark.slow
def test_run_and_table(tmp_path, capsys):
    "A run from the shell, seen by the table; the second time it is only read"
    args = ('digits', 'focusnet', '--seeds', 0, 1, '--folder', 'runs', '--set', 'epochs=2', 'n_train=80', '--base', 'epochs=1')
    res = command('focusnet-run', *args, cwd=tmp_path)
    assert res.returncode == 0, res.stderr[-2000:]
    assert '\r' not in res.stdout and re.search(r'^seed 1: .*accuracy 0\.\d{4}', res.stdout, re.M) and 'baseline seed 0' in res.stdout
    runs = [json.loads(o.read_text()) for o in (tmp_path/'runs').glob('*/result.json')]
    assert sorted((o['method'], o['seed'], o['epochs']) for o in runs) == [('baseline', 0, 1), ('baseline', 1, 1), ('focusnet', 0, 2), ('focusnet', 1, 2)]
    t = time.perf_counter()
    focusnet_run('digits', 'focusnet', [0, 1], str(tmp_path/'runs'), ['epochs=2', 'n_train=80'], ['epochs=1'])
    assert time.perf_counter()-t < 5 and 'epoch 1/2' not in capsys.readouterr().out
    focusnet_table(10, str(tmp_path/'runs'), html=str(tmp_path/'t.html'), set=['epochs=2'])
    assert re.search(r'\| +63\.43 \| +71\.05 \|', capsys.readouterr().out) and '63.43' in (tmp_path/'t.html').read_text(encoding='utf-8')
    shutil.copytree(tmp_path/'runs', tmp_path/'packed')
    for remove, there in ((False, True), (True, False), (False, False)):
        focusnet_pack(str(tmp_path/'packed'), remove=remove)
        assert ('folders are still there' in capsys.readouterr().out) is there
    for f, args, kw, words in [
        (focusnet_run, ('digit', 'focusnet'), {}, 'Unknown recipe'), (focusnet_run, ('digits', 'focus'), {}, 'Unknown method'),
        (focusnet_run, ('digits', 'focusnet'), dict(set=['epoch=1']), "There is no setting 'epoch'"), (focusnet_run, ('digits', 'focusnet'), dict(set=['epochs']), 'key=value'),
        (focusnet_run, ('digits', 'baseline'), dict(set=['net=resnet18', 'n_train=80'], folder=str(tmp_path/'no')), 'does not fit the images, choose another one'),
        (focusnet_run, ('digits', 'byot'), dict(set=['n_train=80'], folder=str(tmp_path/'no')), 'four `Sequential`s'),
        (focusnet_run, ('digits', 'kd'), dict(set=['alpha=much'], folder=str(tmp_path/'no')), "alpha must be a number, but is 'much'"),
        (focusnet_run, ('digits', 'focusnet'), dict(set=['alpha=-1'], folder=str(tmp_path/'no')), 'must lie in 0..inf'),
        (focusnet_run, ('digits', 'baseline'), dict(base=['epochs=1']), 'needs no baseline'), (focusnet_run, ('digits', 'baseline'), dict(folder='/proc/none'), 'Cannot write'),
        (focusnet_table, (1,), {}, 'There is no table 1'), (focusnet_table, (2, 'nowhere'), {}, 'no folder nowhere'), (focusnet_table, (2,), dict(set=['epoch=1']), 'No recipe or method'),
        (focusnet_table, (2,), dict(html='/nowhere/t.html'), 'no folder for /nowhere/t.html'), (focusnet_figure, (2,), dict(n=0), '--n must be at least 1')]:
        assert words in mistake(f, *args, **kw), words


def test_help_lists_recipes_and_methods():
    from fastcore.script import anno_parser
    from focusnet_fastai.methods.registry import methods
    from focusnet_fastai.lab.recipes import recipes
    texts = [' '.join(anno_parser(f.__wrapped__).format_help().split()) for f in (focusnet_run, focusnet_train, focusnet_table)]
    assert ', '.join(recipes) in texts[0] and ', '.join(methods) in texts[0] and all('Examples' in o for o in texts)
    for text in texts: assert not re.search(r'default: (True|False)|\((int|str|float)\)', text)


def test_help_loads_nothing():
    "All commands together, in a fresh interpreter"
    code = '''
import sys, focusnet_fastai.app.cli as cli
from fastcore.script import anno_parser
for f in (cli.focusnet_demo, cli.focusnet_figure, cli.focusnet_train, cli.focusnet_run, cli.focusnet_table): assert len(anno_parser(f.__wrapped__).format_help()) > 300
print(*[o for o in ('torch', 'fastai', 'pandas', 'matplotlib', 'numpy') if o in sys.modules])
'''
    res = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=60)
    assert res.returncode == 0 and res.stdout.split() == [], (res.stdout, res.stderr)


@pytest.mark.slow
def test_exports_travel(trained, tmp_path):
    "Another process, without this package: only fastai is needed, and no path of this system is inside"
    out, _ = trained
    shutil.copy(out/'focusnet.pkl', tmp_path/'f.pkl')
    image = sorted((out.parent/'photos'/'8').iterdir())[0]
    code = f'''
from fastai.vision.all import load_learner
learn = load_learner('f.pkl')
with learn.no_bar(): print(learn.predict({str(image)!r})[0])
learn.export('again.pkl')
'''
    res = fresh.python(code, cwd=tmp_path, without='focusnet_fastai')
    assert res.returncode == 0, res.stderr[-2000:]
    assert res.stdout.strip() in ('3', '8', '9') and (tmp_path/'again.pkl').exists()
    with zipfile.ZipFile(out/'focusnet.pkl') as z: data = z.read(next(o for o in z.namelist() if o.endswith('data.pkl')))
    assert b'PosixPath' not in data and os.fsencode(out.parent) not in data
