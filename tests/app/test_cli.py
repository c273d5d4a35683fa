"The commands as a user types them: real processes, real files, real mistakes."
import json, os, re, resource, shutil, signal, subprocess, sys, time
from pathlib import Path
import pytest, torch
from fastai.vision.all import Learner, load_learner
from focusnet_fastai.app.cli import focusnet_run, focusnet_table, focusnet_train
from focusnet_fastai.app.photo_network import digit_photos, photo_learner
from focusnet_fastai.app.photo_training import GivenBaseline, result_files

bindir = Path(sys.executable).parent
quick = ('--no-pretrained', '--size', '32', '--workers', '0')


def command(name, *args, **kw):
    return subprocess.run([bindir/name, *map(str, args)], capture_output=True, text=True, timeout=300, **kw)


def mistake(f, *args, **kw):
    "Call a command in this process; its message and exit code"
    with pytest.raises(SystemExit) as e: f(*args, **kw)
    return str(e.value)


@pytest.fixture(scope='module')
def photos(tmp_path_factory):
    "Three classes of digits as PNG files"
    return digit_photos(tmp_path_factory.mktemp('cli')/'photos', (3, 8, 9), n=30)


@pytest.fixture(scope='module')
def trained(photos):
    "A training from the shell, on a copy of the photos with a damaged one"
    folder = photos.parent/'damaged'
    shutil.copytree(photos, folder)
    (folder/'3'/'zz.png').write_bytes(b'no image')
    res = command('focusnet-train', 'damaged', '--epochs', 2, *quick, '--out', 'out', cwd=photos.parent)
    assert res.returncode == 0, res.stderr[-3000:]
    return photos.parent/'out', res


def test_train_writes_everything(trained):
    out, res = trained
    assert sorted(o.name for o in out.iterdir()) == sorted(result_files)
    assert '\r' not in res.stdout and not res.stderr, res.stderr
    lines = res.stdout.splitlines()
    assert sum(o.startswith(('epoch 1/2', 'epoch 2/2')) for o in lines) == 4
    assert 'left out: damaged/3/zz.png: no image' in lines and 'damaged: 3 classes, 72 photos for training, 18 for validation' in lines
    assert [('entropy' in o) for o in lines if o.startswith('epoch 2/2')] == [False, True]
    html = (out/'report.html').read_text(encoding='utf-8')
    about = json.loads((out/'focusnet.json').read_text())
    assert about['arch'] == 'resnet18' and about['classes'] == ['3', '8', '9'] and about['size'] == 32
    for r in about['results'].values(): assert f"{r['accuracy']:.2%}" in html and f"{r['ece']:.4f}" in html
    assert f"Fixed: {about['fixed']}. Broken: {about['broken']}." in html
    assert all(o.startswith('data:') for o in re.findall(r'(?:src|href)="([^"]*)"', html)) and '3/zz.png' in html and 'resnet18' in html


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
    res = subprocess.run([sys.executable, '-W', 'ignore', '-c', code], capture_output=True, text=True, timeout=300, cwd=out.parent)
    assert res.returncode == 0, res.stderr[-2000:]
    name, total, same, vocab, cbs = json.loads(res.stdout.splitlines()[-1])
    assert name in vocab and vocab == ['3', '8', '9'] and abs(total-1) < 1e-4 and same
    assert not {'FocusNetCallback', 'EpochLine'} & set(cbs)
    sizes = [(out/f'{n}.pkl').stat().st_size for n in ('baseline', 'focusnet')]
    assert abs(sizes[0]-sizes[1]) < 1e5  # no baseline inside


def test_train_against_a_given_baseline(trained, photos, tmp_path):
    "Weights with their JSON file, and an exported learner; a second training into the same folder is refused"
    out, _ = trained
    lines = []
    from focusnet_fastai.app.photo_training import train_photos
    learn, base = train_photos(photos, tmp_path/'a', baseline=out/'baseline.pth', epochs=1, pretrained=False, workers=0, log=lines.append)
    weights = torch.load(out/'baseline.pth', weights_only=True)
    assert all(torch.equal(v.cpu(), weights[k]) for k, v in base.model.state_dict().items())
    assert sorted(o.name for o in (tmp_path/'a').iterdir()) == ['focusnet.json', 'focusnet.pkl', 'focusnet.pth', 'report.html']
    assert 'from baseline.pth' in (tmp_path/'a'/'report.html').read_text(encoding='utf-8') and 'Baseline:' not in ' '.join(map(str, lines))
    assert GivenBaseline(out/'baseline.pkl').size == 32
    msg = mistake(focusnet_train, str(photos), out=str(tmp_path/'a'), baseline=str(out/'baseline.pkl'))
    assert 'holds results already (focusnet.pkl' in msg and '--overwrite' in msg
    before = (tmp_path/'a'/'focusnet.pth').read_bytes()
    train_photos(photos, tmp_path/'a', baseline=out/'baseline.pkl', epochs=1, seed=1, pretrained=False, workers=0, overwrite=True, log=lines.append)
    assert (tmp_path/'a'/'focusnet.pth').read_bytes() != before


def test_a_seed_gives_the_same_weights(photos, tmp_path):
    from focusnet_fastai.app.photo_training import train_photos
    two = digit_photos(tmp_path/'two', (3, 8), n=8)
    runs = [train_photos(two, tmp_path/f'{i}', epochs=1, size=32, seed=s, pretrained=False, workers=0, log=lambda o: None)[0] for i, s in enumerate((5, 5, 6))]
    a, b, c = [torch.cat([p.detach().flatten().cpu() for p in o.model.parameters()]) for o in runs]
    assert torch.equal(a, b) and not torch.equal(a, c)


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
    new, given = str(tmp_path/'new'), dict(pretrained=False, workers=0, size=32)
    cases = [
        ((tmp_path/'nowhere',), {}, 'There is no folder'), ((tmp_path/'file',), {}, 'is a file'), ((one,), {}, 'one class only'),
        ((photos,), dict(arch='resnet81'), 'did you mean resnet'), ((photos,), dict(arch='vit_b_16'), 'cannot make a classifier of vit_b_16'),
        ((photos,), dict(size=8), 'size must be at least 32'), ((photos,), dict(epochs=0), 'epochs must be'), ((photos,), dict(bs=1), 'bs must be'),
        ((photos,), dict(lr=-1.), 'lr must be'), ((photos,), dict(valid_pct=1.), 'valid_pct'), ((photos,), dict(rule='warm'), "rule must be"),
        ((photos,), dict(out=str(photos/'out')), 'among the photos'), ((photos,), dict(out=str(tmp_path/'file')), 'is a file'),
        ((photos,), dict(out=str(tmp_path/'file'/'x')), 'cannot be written'),
        ((photos,), dict(baseline='no.pkl'), 'no file no.pkl'), ((photos,), dict(baseline=str(tmp_path/'garbage.pkl')), 'cannot be loaded'),
        ((photos,), dict(baseline=str(out/'focusnet.json')), 'cannot be loaded'), ((photos,), dict(baseline=str(tmp_path/'alone.pth')), '--arch'),
        ((photos,), dict(baseline=str(tmp_path/'garbage.pth'), arch='resnet18'), 'cannot be read as weights'),
        ((photos,), dict(baseline=str(tmp_path/'half.pth'), arch='resnet18'), 'cannot be read as weights'),
        ((four,), dict(baseline=str(tmp_path/'alone.pth'), arch='resnet18'), 'do not belong to a resnet18 for 4 classes'),
        ((photos,), dict(baseline=str(tmp_path/'alone.pth'), arch='resnet34'), 'do not belong to a resnet34'),
        ((other,), dict(baseline=str(out/'baseline.pth')), 'classes that the baseline does not know'),
        ((other,), dict(baseline=str(out/'baseline.pkl')), 'classes that the baseline does not know'),
        ((four,), dict(baseline=str(out/'baseline.pkl')), 'The baseline knows 3 classes')]
    for args, kw, words in cases:
        msg = mistake(focusnet_train, *map(str, args), **{**given, 'out': new, **kw})
        assert msg.startswith('focusnet-train: ') and words in msg, (kw, msg)
    assert not os.path.exists(new)


def test_weights_that_cannot_be_fetched(photos, tmp_path, monkeypatch):
    "An empty cache, and a proxy that nobody listens on"
    from focusnet_fastai.data.folder import folder_dls
    old = torch.hub.get_dir()
    for o in ('http_proxy', 'https_proxy', 'HTTP_PROXY', 'HTTPS_PROXY'): monkeypatch.setenv(o, 'http://127.0.0.1:9')
    torch.hub.set_dir(tmp_path)
    try:
        with pytest.raises(ValueError, match='pretrained weights of resnet18 cannot be had') as e: photo_learner(folder_dls(photos, size=32, num_workers=0))
    finally: torch.hub.set_dir(old)
    assert '--no-pretrained' in str(e.value) and str(tmp_path) in str(e.value)


def test_wrong_arguments_and_bad_folder_from_a_shell(tmp_path):
    res = command('focusnet-train', 'photos', '--epochs', 'many')
    assert res.returncode == 2 and 'invalid int value' in res.stderr
    res = command('focusnet-train', 'nowhere', cwd=tmp_path)
    assert res.returncode == 1 and res.stderr.strip() == 'focusnet-train: There is no folder nowhere' and not list(tmp_path.iterdir())


def test_a_full_disk(photos, tmp_path):
    "No file may grow beyond 1 MB: a sentence, and no half files"
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))
    res = command('focusnet-train', photos, '--epochs', 1, *quick, '--out', tmp_path/'out', preexec_fn=limit)
    assert res.returncode == 1 and 'Traceback' not in res.stderr and re.search(r'^focusnet-train: .*File too large', res.stderr.strip()), res.stderr
    assert not list((tmp_path/'out').iterdir())


def test_ctrl_c(photos, tmp_path):
    "While FocusNet is trained, with worker processes, as a terminal sends it to all of them"
    args = [bindir/'focusnet-train', photos, '--no-pretrained', '--size', '32', '--workers', '1', '--epochs', '1', '--out', tmp_path/'out']
    p = subprocess.Popen(list(map(str, args)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    for line in p.stdout:
        if line.startswith('FocusNet:'): break
    os.killpg(p.pid, signal.SIGINT)
    out, err = p.communicate(timeout=120)
    assert p.returncode == 130 and 'Traceback' not in err, (p.returncode, err)
    assert f"focusnet-train: stopped. The baseline is kept: --baseline {tmp_path/'out'/'baseline.pkl'} goes on from there." in err
    assert sorted(o.name for o in (tmp_path/'out').iterdir()) == ['baseline.json', 'baseline.pkl', 'baseline.pth']
    assert isinstance(load_learner(tmp_path/'out'/'baseline.pkl'), Learner)


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
    assert '| 63.43 | 71.05 |' in capsys.readouterr().out and '63.43' in (tmp_path/'t.html').read_text(encoding='utf-8')
    for f, args, kw, words in [
        (focusnet_run, ('digit', 'focusnet'), {}, 'Unknown recipe'), (focusnet_run, ('digits', 'focus'), {}, 'Unknown method'),
        (focusnet_run, ('digits', 'focusnet'), dict(set=['epoch=1']), "There is no setting 'epoch'"), (focusnet_run, ('digits', 'focusnet'), dict(set=['epochs']), 'key=value'),
        (focusnet_run, ('digits', 'baseline'), dict(set=['net=resnet18', 'n_train=80'], folder=str(tmp_path/'no')), 'does not fit the images, choose another one'),
        (focusnet_run, ('digits', 'byot'), dict(set=['n_train=80'], folder=str(tmp_path/'no')), 'four `Sequential`s'),
        (focusnet_run, ('digits', 'baseline'), dict(base=['epochs=1']), 'needs no baseline'), (focusnet_run, ('digits', 'baseline'), dict(folder='/proc/none'), 'Cannot write'),
        (focusnet_table, (1,), {}, 'There is no table 1'), (focusnet_table, (2, 'nowhere'), {}, 'no folder nowhere'), (focusnet_table, (2,), dict(set=['epoch=1']), 'No recipe or method'),
        (focusnet_table, (2,), dict(html='/nowhere/t.html'), 'no folder for /nowhere/t.html')]:
        assert words in mistake(f, *args, **kw), words


def test_help_lists_recipes_and_methods():
    from fastcore.script import anno_parser
    from focusnet_fastai.methods.registry import methods
    from focusnet_fastai.lab.recipes import recipes
    texts = [' '.join(anno_parser(f.__wrapped__).format_help().split()) for f in (focusnet_run, focusnet_train, focusnet_table)]
    assert ', '.join(recipes) in texts[0] and ', '.join(methods) in texts[0] and all('Examples' in o for o in texts)
