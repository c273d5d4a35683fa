"Files appear whole or not at all, and the environment is told."
import json, os, textwrap
from pathlib import Path
import pytest, torch
from helpers import fresh
from focusnet_fastai.record import check_room, container_memory, environment, free_disk, free_memory, read_json, RunError, size_text, whole_file, write_file, write_json, write_whole


@pytest.mark.parametrize('error', [ValueError, KeyboardInterrupt, OSError])
@pytest.mark.parametrize('shared', [False, True])
def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path, error, shared):
    f = tmp_path/'a.bin'
    f.write_bytes(b'old')
    with pytest.raises(error):
        with whole_file(f, shared) as o:
            o.write(b'new')
            assert f.read_bytes() == b'old'
            raise error
    assert f.read_bytes() == b'old' and os.listdir(tmp_path) == ['a.bin']
    with whole_file(f, shared) as o: o.write(b'new')
    assert f.read_bytes() == b'new' and os.listdir(tmp_path) == ['a.bin']


def test_two_writers_of_a_shared_file_do_not_mix(tmp_path):
    "The one that ends last wins, with its own bytes"
    f = tmp_path/'cache.npz'
    with whole_file(f, shared=True) as a, whole_file(f, shared=True) as b:
        assert a.name != b.name
        a.write(b'a'*1000); b.write(b'b'*1000)
    assert f.read_bytes() == b'a'*1000 and os.listdir(tmp_path) == ['cache.npz']


def test_a_writer_that_takes_a_path(tmp_path):
    with whole_file(tmp_path/'w.pth') as f: torch.save({'w': torch.ones(3)}, f.name)
    assert torch.load(tmp_path/'w.pth', weights_only=True)['w'].tolist() == [1, 1, 1]


def test_a_link_keeps_pointing_to_its_file(tmp_path):
    (tmp_path/'real').mkdir()
    (tmp_path/'real'/'a.txt').write_text('old')
    (tmp_path/'a.txt').symlink_to(tmp_path/'real'/'a.txt')
    write_whole(tmp_path/'a.txt', 'new')
    assert (tmp_path/'a.txt').is_symlink() and (tmp_path/'real'/'a.txt').read_text() == 'new'


def test_text_is_utf8_and_permissions_are_the_users(tmp_path):
    old = os.umask(0o027)
    try: f = write_whole(tmp_path/'a.txt', 'Größe 大')
    finally: os.umask(old)
    assert f.read_text(encoding='utf-8') == 'Größe 大' and f.stat().st_mode & 0o777 == 0o640


@pytest.mark.slow
def test_killed_while_writing(tmp_path):
    "The old file is whole, and the next write removes what was left behind"
    f = write_whole(tmp_path/'a.txt', 'old')
    code = textwrap.dedent(f'''
        import os, signal
        from focusnet_fastai.record import whole_file
        with whole_file({str(f)!r}) as o:
            o.write(b'half'); o.flush()
            os.kill(os.getpid(), signal.SIGKILL)
    ''')
    assert fresh.python(code).returncode == -9
    assert f.read_text() == 'old' and len(os.listdir(tmp_path)) == 2
    assert write_whole(f, 'new').read_text() == 'new' and os.listdir(tmp_path) == ['a.txt']


def test_a_run_that_cannot_write_says_so(tmp_path):
    with pytest.raises(RunError, match='Cannot write .*b.txt: No such file.*the same call continues') as e: write_file(tmp_path/'no'/'b.txt', 'x')
    assert str(e.value) == e.value.message


def test_environment_is_json(tmp_path):
    write_json(tmp_path/'e.json', environment('cpu'))
    env = read_json(tmp_path/'e.json')
    assert env['device'].startswith('cpu: ') and torch.__version__.startswith(env['versions']['torch'].split('+')[0])
    assert env == json.loads((tmp_path/'e.json').read_text())


@pytest.mark.parametrize('content', [b'', b'{"a": 1', b'\xff\xfe\x00', b'nothing of the kind'])
def test_damaged_json_is_named(tmp_path, content):
    (tmp_path/'c.json').write_bytes(content)
    with pytest.raises(RunError, match='c.json is damaged'): read_json(tmp_path/'c.json')


@pytest.mark.parametrize('n,text', [(0, '0 bytes'), (999, '999 bytes'), (1500, '1.5 kB'), (55_090_181, '55 MB'), (2_563_615_167, '2.6 GB'), (3*10**12, '3.0 TB')])
def test_sizes_in_words(n, text): assert size_text(n) == text


def test_room_is_counted():
    "Equal is enough, unknown is no reason to stop, and the sentence has both numbers and the way out"
    check_room('Rows', 100, 100, 'memory', 'none')
    check_room('Rows', 100, None, 'memory', 'none')
    with pytest.raises(RunError) as e: check_room('Rows', 5*10**9, 4*10**9, 'memory', 'keep fewer (`k=10`)')
    assert str(e.value) == 'Rows would take 5.0 GB, but only 4.0 GB of memory are free: keep fewer (`k=10`)'


def test_a_container_bounds_the_memory(tmp_path, monkeypatch):
    "The limit less what is used, where files at hand count as free; without a limit, or without such files, the machine's own"
    for name, v in dict(max='5000', current='4000', stat='anon 1000\nfile 3000\nslab 5').items(): (tmp_path/f'memory.{name}').write_text(v+'\n')
    assert container_memory(tmp_path) == 4000
    (tmp_path/'memory.current').write_text('9000')
    assert container_memory(tmp_path) == 0
    (tmp_path/'memory.max').write_text('max')
    assert container_memory(tmp_path) is None and container_memory(tmp_path/'nothing') is None
    monkeypatch.setattr('focusnet_fastai.record.container_memory', lambda: 1234)
    assert free_memory() == 1234 and free_memory('meta') is None
    assert free_disk(tmp_path/'a'/'b') == pytest.approx(free_disk(tmp_path), rel=.05)
