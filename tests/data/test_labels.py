"labels.csv: what explorer and report write, spreadsheets change, and folder_dls trains with"
import functools, shutil, warnings
from pathlib import Path
import pytest
from torch import nn
from fastai.vision.all import Learner, load_learner
from focusnet_fastai.data.folder import folder_dls
from focusnet_fastai.data.labels import photo_names, read_labels, write_labels
from helpers.miniatures import quietly, save

own = functools.partial(folder_dls, size=32, num_workers=0)


def labels_of(dls):
    "File -> class, of both loaders"
    return {Path(f): dls.vocab[int(y)] for dl in dls.loaders for f, (_, y) in zip(dl.dataset.items, dl.dataset)}


def names(dls, ds): return photo_names([*ds.items, *dls.train_ds.items, *dls.valid_ds.items])[:len(ds.items)]


@pytest.fixture
def plain(photos): return own(photos)


def test_marks_change_labels_and_nothing_else(photos, plain, tmp_path):
    "On both sides; what is held out stays, batches have the new classes, and other labels are as before"
    a, gone, b = plain.train_ds.items[0], plain.train_ds.items[-1], plain.valid_ds.items[-1]
    train, valid, before = names(plain, plain.train_ds), names(plain, plain.valid_ds), labels_of(plain)
    table = write_labels(tmp_path/'labels.csv', [(train[0], 'plum'), (valid[-1], 'apple'), (train[-1], 'drop')])
    dls = own(photos, labels=table)
    now = labels_of(dls)
    assert (before[a], now[a], before[b], now[b]) == ('apple', 'plum', 'plum', 'apple') and gone not in now
    assert {f: c for f, c in now.items() if f not in (a, b)} == {f: c for f, c in before.items() if f not in (a, b, gone)}
    assert set(dls.valid_ds.items) == set(plain.valid_ds.items) and dls.left_out == {gone: 'marked: no photo of any class'}
    assert dls.vocab == plain.vocab and sum(len(y) for _, y in dls.valid) == len(plain.valid_ds)
    counted = sum((y == dls.vocab.o2i['plum']).sum().item() for _, y in dls.valid)
    assert counted == sum(c == 'plum' for f, c in now.items() if f in dls.valid_ds.items)


@pytest.mark.parametrize('code', ['utf-8', 'utf-8-sig', 'utf-16', 'cp1252'])
@pytest.mark.parametrize('sep', [',', ';', '\t'])
def test_what_spreadsheets_make_of_it(photos, plain, tmp_path, code, sep):
    "Bytes, separators, quotes, ends of lines, further columns, upper case; paths of other systems"
    f = plain.train_ds.items[0]
    f = f.rename(f.with_name('ä, b; c.jpg'))
    rows = [['File', 'score', 'LABEL'], ['apple\\ä, b; c.jpg', '1', ' pear '], [f'"{photos/"plum"/"1.jpg"}"', '2', '"drop"']]
    rows[1][0] = f'"{rows[1][0]}"'
    (tmp_path/'x.csv').write_bytes(''.join(sep.join(o) + '\r\n' for o in rows).encode(code))
    assert labels_of(own(photos, labels=str(tmp_path/'x.csv')))[f] == 'pear'


@pytest.mark.parametrize('rows,why', [
    ([('apple/99.jpg', 'pear')], "row 2: there is no photo 'apple/99.jpg' in this folder"),
    ([('1.jpg', 'pear')], "row 2: '1.jpg' may be .*apple.1.jpg or .*pear.1.jpg.*: write more of the path"),
    ([('apple/1.jpg', 'peer')], "row 2: there is no class 'peer': did you mean 'pear'"),
    ([('apple/1.jpg', 'zebra')], "there is no class 'zebra': a label is one of apple, pear, plum, or 'drop'"),
    ([('apple/1.jpg', '')], 'row 2: there is no label'),
    ([('apple/2.jpg', 'pear'), ('apple/1.jpg', 'pear'), ('./apple/1.jpg', 'pear')], 'twice, in rows 3 and 4'),
    ([('apple/1.jpg', 'pear'), ('apple/1.jpg', 'plum')], "as 'pear' in row 2 and as 'plum' in row 3"),
    ([(f'apple/{i}.jpg', 'drop') for i in range(10)], "No photo for training is left of the class 'apple'")])
def test_refused_by_name(photos, tmp_path, rows, why):
    with pytest.raises(ValueError, match=why): own(photos, labels=write_labels(tmp_path/'labels.csv', rows))


def test_no_table(photos, tmp_path):
    with pytest.raises(FileNotFoundError, match='There is no file .*nowhere.csv with labels'): own(photos, labels=tmp_path/'nowhere.csv')
    for text, why in (('', 'cannot be read as a table'), ('a,b\n1,2\n', 'no column .file..* but are .a., .b.'), ('file\nx\n', 'no column .label.')):
        (tmp_path/'x.csv').write_text(text)
        with pytest.raises(ValueError, match=why): own(photos, labels=tmp_path/'x.csv')


def test_names_of_classes_stay_text(tmp_path):
    "Classes called NA, 1 and null"
    for k, c in enumerate(('NA', '1', 'null')):
        for i in range(4): save(tmp_path/'p'/c/f'{i}.png', seed=10*k + i)
    table = write_labels(tmp_path/'labels.csv', [('NA/0.png', '1'), ('1/0.png', 'null'), ('null/0.png', 'NA')])
    now = {f'{f.parent.name}/{f.name}': c for f, c in labels_of(own(tmp_path/'p', labels=table)).items()}
    assert (now['NA/0.png'], now['1/0.png'], now['null/0.png']) == ('1', 'null', 'NA')
    (tmp_path/'p'/'null').rename(tmp_path/'p'/'drop')
    with pytest.raises(ValueError, match="'drop' leaves a photo out, but is also a class"): own(tmp_path/'p', labels=write_labels(table, [('NA/0.png', 'drop')]))


def test_copies_and_disputes(photos, tmp_path):
    "A mark settles a dispute, and makes no photograph stand on both sides; what is held out stays"
    shutil.copy(photos/'apple'/'3.jpg', photos/'pear'/'again.jpg')
    with pytest.warns(UserWarning, match='lie in several classes'): before = own(photos)
    table = write_labels(tmp_path/'labels.csv', [('pear/again.jpg', 'apple')])
    with warnings.catch_warnings(record=True) as w:
        warnings.simplefilter('always')
        dls = own(photos, labels=table)
    assert dls.disputed == [] and not any('several classes' in str(o.message) for o in w)
    assert set(dls.valid_ds.items) == set(before.valid_ds.items)
    sides = [{Path(f).read_bytes() for f in ds.items} for ds in (dls.train_ds, dls.valid_ds)]
    assert not sides[0] & sides[1]
    with pytest.warns(UserWarning, match='lie in several classes'):
        assert len(own(photos, labels=write_labels(table, [('apple/3.jpg', 'plum')])).disputed) == 1


def test_folders_with_a_split(tmp_path):
    "The same name on both sides must be told apart"
    for s, k in (('train', 4), ('valid', 2)):
        for j, c in enumerate('ab'):
            for i in range(k): save(tmp_path/'p'/s/c/f'{i}.png', seed=100*k + 10*j + i)
    with pytest.raises(ValueError, match="'a/0.png' may be .*train.a.0.png or .*valid.a.0.png"):
        own(tmp_path/'p', labels=write_labels(tmp_path/'labels.csv', [('a/0.png', 'b')]))
    dls = own(tmp_path/'p', labels=write_labels(tmp_path/'labels.csv', [('valid/a/0.png', 'b')]))
    assert [c for f, c in labels_of(dls).items() if f.parts[-3:] == ('valid', 'a', '0.png')] == ['b']
    assert 'valid/a/0.png' in names(dls, dls.valid_ds)


def test_an_export_knows_nothing_of_marks(photos, plain, tmp_path):
    "And works as ever"
    name = names(plain, plain.train_ds)[0]
    dls = own(photos, labels=write_labels(tmp_path/'labels.csv', [(name, 'plum')]))
    learn = Learner(dls, nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 3)))
    learn.export(tmp_path/'x.pkl')
    data = (tmp_path/'x.pkl').read_bytes()
    assert b'MarkedFolder' not in data and str(plain.train_ds.items[0]).encode() not in data
    again = load_learner(tmp_path/'x.pkl')
    assert quietly(again, again.predict, photos/'pear'/'3.jpg')[0] in dls.vocab
    assert labels_of(dls)[Path(plain.train_ds.items[0])] == 'plum'


@pytest.mark.slow
def test_worker_processes_and_kept_pictures_have_the_marks(photos, plain, tmp_path):
    "Processes that are started anew, and pictures that are decoded once"
    name = names(plain, plain.train_ds)[0]
    table = write_labels(tmp_path/'labels.csv', [(name, 'plum')])
    for how in (dict(num_workers=1), dict(num_workers=0, cache=tmp_path/'kept')):
        dls = folder_dls(photos, size=32, labels=table, **how)
        y = sum((y == dls.vocab.o2i['plum']).sum().item() for _, y in dls.train.new(shuffle=False, drop_last=False))
        assert y == 9, how
