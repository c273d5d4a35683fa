"The doctor from a shell: files of any framework, photographs with an exported learner, and mistakes."
import json, subprocess, sys
import numpy as np, pytest, torch

from helpers.learners import quiet
from helpers.planted import spoilt_digits
from focusnet_fastai.app.doctor import focusnet_doctor, read_preds
from focusnet_fastai.app.photo_network import digit_photos, photo_learner
from focusnet_fastai.data.folder import folder_dls


@pytest.fixture(scope='module')
def preds(tmp_path_factory):
    "What a network has written that knows nothing of this package"
    f = tmp_path_factory.mktemp('doctor')/'preds.npz'
    np.savez(f, **{k: np.asarray(v) for k, v in spoilt_digits('relabel')[0].items()})
    return f


def changed(preds, name, drop=(), **arrays):
    "A copy of the file without some arrays, and with others"
    with np.load(preds) as o: kept = {k: o[k] for k in o.files if k not in drop}
    np.savez(preds.parent/name, **{**kept, **arrays})
    return preds.parent/name


def mistake(*args, **kw):
    with pytest.raises(SystemExit) as e: focusnet_doctor(*args, **kw)
    return str(e.value)


def test_file_of_any_framework(preds, capsys):
    out = preds.parent/'d.json'
    focusnet_doctor(str(preds), out=str(out), n=5)
    text, found = capsys.readouterr().out, json.loads(out.read_text())
    first = found['pairs'][0]
    assert {first['true'], first['predicted']} == {'d3', 'd8'} and first['verdict'] == 'relabel' and len(found['pairs']) <= 5
    assert first['why'].replace('`suspicious`', f'`suspicious` in {out}') in text and 'What helps: ' + first['remedy'][:4] in text and '.suspicious' not in text and found['label_evidence'] == 'training' and found['suspicious'][0]['score'] > 0


@pytest.mark.parametrize('drop,source', [(['train_epochs'], 'features'), (['train_epochs', 'train_features'], None)])
def test_less_is_known(preds, drop, source, capsys):
    out = preds.parent/'less.json'
    focusnet_doctor(str(changed(preds, 'less.npz', drop)), out=str(out))
    assert json.loads(out.read_text())['label_evidence'] == source


def test_margins_files_or_probabilities_instead(preds, capsys):
    from focusnet_fastai.margins import training_evidence
    a = read_preds(preds)
    ev = training_evidence(torch.from_numpy(a['train_epochs']), torch.from_numpy(a['train_labels']))
    files, out = np.array([f'{i}.png' for i in range(1000)]), preds.parent/'m.json'
    focusnet_doctor(str(changed(preds, 'm.npz', ['train_epochs'], train_margins=ev.margin.numpy(), train_files=files)), out=str(out))
    found = json.loads(out.read_text())['suspicious']
    assert all(o['file'] == f"{o['index']}.png" for o in found) and len(found) == int((ev.margin < 0).sum())
    p = torch.from_numpy(a['train_epochs']).softmax(2).mean(0).numpy()
    focusnet_doctor(str(changed(preds, 'p.npz', ['train_epochs'], train_probs=p)), out=str(out))
    assert json.loads(out.read_text())['label_evidence'] == 'held-out'


def test_mistakes(preds, tmp_path):
    z = np.zeros((4, 3), np.float32)
    cases = [(dict(logits=z), 'holds no labels'), (dict(logits=z, labels=np.zeros(4)), 'whole numbers from 0'), (dict(logits=z[0], labels=np.arange(3)), 'images, classes'),
             (dict(logits=z, labels=np.arange(4)), 'from 0 to 2'), (dict(logits=z, labels=np.arange(3)), 'for each of the 4 images'),
             (dict(logits=z[:, :1], labels=np.zeros(4, int)), 'only one class'), (dict(logits=z, labels=np.arange(4)%3, names=np.array(['a'])), '1 names'),
             (dict(logits=z, labels=np.arange(4)%3, train_logits=z), 'nothing without train_labels'), (dict(logits=z, labels=np.arange(4)%3, target=z), "'target'"),
             (dict(logits=z, labels=np.arange(4)%3, train_labels=np.arange(4)%3, train_epochs=z), r'train_epochs must have shape (any, 4, 3)'),
             (dict(logits=z, labels=np.array([0, 'a'], dtype=object)), 'Python objects')]
    for arrays, words in cases:
        np.savez(tmp_path/'bad.npz', **arrays)
        text = mistake(str(tmp_path/'bad.npz'))
        assert text.startswith('focusnet-doctor: ') and words in text, (words, text)
    whole = preds.read_bytes()
    (tmp_path/'cut.npz').write_bytes(whole[:len(whole)//2])
    assert 'no .npz file' in mistake(str(tmp_path/'cut.npz'))
    assert 'There is no folder or file' in mistake(str(tmp_path/'none.npz')) and 'no folder for' in mistake(str(preds), out=str(tmp_path/'no'/'d.json'))
    assert '--learn' in mistake(str(tmp_path)) and '--n' in mistake(str(preds), n=0) and 'needs no network' in mistake(str(preds), learn='x.pkl')


@pytest.mark.slow
def test_folder_and_exported_learner(tmp_path):
    "From a shell, with the split of the training; another folder's classes are refused"
    photos = digit_photos(tmp_path/'photos', (3, 8, 9), n=30)
    learn = photo_learner(folder_dls(photos, 32, bs=16, num_workers=0), 'resnet18', pretrained=False)
    with quiet(learn): learn.fit(1, 1e-3)
    want = learn.diagnose(n=3)
    learn.export(tmp_path/'net.pkl')
    (tmp_path/'doctor.py').write_text('from focusnet_fastai.app.doctor import focusnet_doctor\nfocusnet_doctor()')
    res = subprocess.run([sys.executable, 'doctor.py', 'photos', '--learn', 'net.pkl', '--out', 'd.json', '--n', '3'],
                         capture_output=True, text=True, timeout=300, cwd=tmp_path)
    assert res.returncode == 0, res.stderr[-2000:]
    found = json.loads((tmp_path/'d.json').read_text())
    assert [(o['true'], o['predicted'], o['count']) for o in found['pairs']] == list(zip(want.df.true, want.df.predicted, want.df['count']))
    assert found['images'] == 18 and found['training_images'] == 72
    assert all(o['file'].endswith('.png') for o in found['suspicious'])
    other = digit_photos(tmp_path/'other', (3, 8, 5), n=10)
    assert "'5' is a class of only one of them" in mistake(str(other), learn=str(tmp_path/'net.pkl'))
