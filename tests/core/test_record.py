"Files appear whole or not at all, and the environment is told."
import json, os, subprocess, sys, textwrap
from pathlib import Path
import pytest, torch
from focusnet_fastai.record import environment, read_json, RunError, whole_file, write_file, write_json, write_whole


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
    assert subprocess.run([sys.executable, '-c', code], timeout=180).returncode == -9
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
