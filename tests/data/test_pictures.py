"One door for pictures: every orientation, mode and depth, and one answer for a file and for what is made of it"
import functools, warnings
import numpy as np, PIL, pytest, torch
from PIL import Image, ImageCms
from fastai.vision.all import PILImage, PILImageBW
from focusnet_fastai.data.pictures import OpenPicture, door_text, open_picture, picture_endings, picture_error, picture_files
from helpers import fresh

TURNS = {1: None, 2: 'FLIP_LEFT_RIGHT', 3: 'ROTATE_180', 4: 'FLIP_TOP_BOTTOM', 5: 'TRANSPOSE', 6: 'ROTATE_90', 7: 'TRANSVERSE', 8: 'ROTATE_270'}


def corners():
    "48x32 pixels; each corner has its own colour"
    a = np.zeros((32, 48, 3), np.uint8)
    a[:16, :24], a[:16, 24:], a[16:, :24], a[16:, 24:] = (250, 10, 10), (10, 250, 10), (10, 10, 250), (240, 240, 10)
    return Image.fromarray(a)


@functools.lru_cache
def without_package():
    "The door as an exported learner carries it, made from its text"
    scope = dict(text=door_text().replace('from focusnet_fastai.', 'from not_installed.'))
    exec(scope['text'], scope)
    return scope['OpenPicture']


@pytest.fixture(params=['here', 'from text'])
def opener(request): return open_picture if request.param == 'here' else lambda o, mode='RGB': without_package()(mode)(o)


@pytest.mark.parametrize('ending', ['.jpg', '.png', '.webp', '.tif'])
@pytest.mark.parametrize('orientation', TURNS)
@pytest.mark.slow
def test_orientation(tmp_path, opener, orientation, ending):
    "What a camera stores lying is upright, whether it comes as a file, as bytes or opened by hand, and is turned once only"
    turn, exif, f = TURNS[orientation], Image.Exif(), tmp_path/f'a{ending}'
    exif[0x0112] = orientation
    (corners().transpose(Image.Transpose[turn]) if turn else corners()).save(f, exif=exif, **(dict(quality=95) if ending != '.tif' else {}))
    for o in (f, str(f), f.read_bytes(), Image.open(f), Image.open(f).convert('RGBA'), opener(f)):
        got = np.asarray(opener(o)).astype(int)
        assert got.shape == (32, 48, 3) and np.abs(got - np.asarray(corners())).mean() < 12, o


def test_a_damaged_note_of_the_camera(tmp_path):
    corners().save(tmp_path/'a.jpg', exif=b'Exif\0\0MM\0*\0\0\0\x08\xff\xff' + b'\x01'*30, quality=95)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        warnings.filterwarnings('ignore', module='PIL.TiffImagePlugin')  # as the module itself does
        assert open_picture(tmp_path/'a.jpg').size == (48, 32)


old = int(PIL.__version__.split('.')[0]) < 13
plain_ycbcr = pytest.param('YCbCr', marks=pytest.mark.skipif(old, reason='Pillow before 13 cannot read the uncompressed TIFF that it writes in YCbCr'))


@pytest.mark.slow
@pytest.mark.parametrize('mode', ['1', 'L', 'LA', 'P', 'RGB', 'RGBA', 'CMYK', plain_ycbcr, 'I;16', 'I', 'F'])
def test_a_file_and_what_is_made_of_it(tmp_path, opener, mode):
    "In every mode: file, lazily opened image and loaded image give the same picture, and the image that was handed over stays as it was"
    f = tmp_path/('a.tif' if mode in ('CMYK', 'YCbCr', 'I;16', 'I', 'F') else 'a.png')
    im = corners().convert('L').convert(mode) if mode in ('I;16', 'I', 'F') else corners().convert(mode)
    im.save(f)
    for m, kind in (('RGB', PILImage), ('L', PILImageBW)):
        want = opener(f, m)
        assert type(want) is kind and want.mode == m
        loaded = Image.open(f)
        loaded.load()
        kept = type(loaded), loaded.mode, loaded.tobytes()
        for o in (Image.open(f), loaded): assert np.array_equal(opener(o, m), want)
        assert kept == (type(loaded), loaded.mode, loaded.tobytes())


def test_transparency_and_palettes_without_a_warning(tmp_path):
    "What is transparent shows its colour; a palette with several transparent entries makes Pillow warn elsewhere"
    a = np.dstack([np.asarray(corners()), np.full((32, 48), 7, np.uint8)])
    Image.fromarray(a).save(tmp_path/'a.png')
    corners().quantize(8).save(tmp_path/'p.png', transparency=bytes([0, 128, 255, 7]))
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert np.array_equal(open_picture(tmp_path/'a.png'), np.asarray(corners()))
        assert np.abs(np.asarray(open_picture(tmp_path/'p.png')).astype(int) - np.asarray(corners())).mean() < 3
        for mode in ('LA', 'La', 'RGBa', 'PA'): open_picture(Image.fromarray(a).convert('RGBA' if mode == 'RGBa' else 'LA' if mode == 'La' else 'RGBA').convert(mode))


def test_colours_of_lab():
    lab = ImageCms.profileToProfile(corners(), ImageCms.createProfile('sRGB'), ImageCms.createProfile('LAB'), outputMode='LAB')
    assert np.abs(np.asarray(open_picture(lab)).astype(int) - np.asarray(corners())).mean() < 8


@pytest.mark.parametrize('values,ending', [((np.uint16, 65535), '.png'), ((np.uint16, 65535), '.tif'), ((np.float32, 1), '.tif'), ((np.float32, 255), '.tif'),
                                           ((np.float32, 65535), '.tif'), ((np.int32, 65535), '.tif')], ids=str)
def test_depth(tmp_path, opener, values, ending):
    "A ramp stays a ramp, whatever its depth: neither white nor black"
    kind, top = values
    ramp = np.tile(np.linspace(0, 1, 256), (8, 1))
    Image.fromarray((ramp*top).astype(kind)).save(tmp_path/f'a{ending}')
    for o in (tmp_path/f'a{ending}', Image.open(tmp_path/f'a{ending}')):
        got = np.asarray(opener(o, 'L')).astype(int)
        assert np.abs(got - np.arange(256)).max() <= 1
    dark = (ramp*top/8).astype(kind)  # a dark picture of 16 bits stays dark
    Image.fromarray(dark).save(tmp_path/f'd{ending}')
    if kind is np.uint16: assert np.asarray(opener(tmp_path/f'd{ending}', 'L')).max() == 32


def test_arrays():
    "Bytes, 16 bits, floats 0..1, channels first or last; another scale is refused"
    a = np.array(corners())
    same = [a, torch.tensor(a), torch.tensor(a).permute(2, 0, 1), a/255, (a/255).astype(np.float32), a.astype(np.int64), a.astype(np.uint16)*257,
            np.dstack([a, np.full((32, 48), 9, np.uint8)])]
    for o in same: assert np.array_equal(open_picture(o), a)
    grey = a.mean(-1).astype(np.uint8)
    for o in (grey, grey[..., None], grey[None], np.dstack([grey, grey])): assert np.array_equal(open_picture(o, 'L'), grey)
    assert np.asarray(open_picture(grey > 99)).max() == 255
    for o, message in ((a/255 - 1, r'0\.\.1, but reach from'), (a.astype(int)*2, r'0\.\.255, but reach'), (np.zeros((2, 3, 4, 5)), 'but this array has'),
                       (np.full((4, 4), np.nan), 'must lie in')):
        with pytest.raises(ValueError, match=message): open_picture(o)


def test_errors_name_the_file(tmp_path, opener):
    f = tmp_path/'a.jpg'
    corners().save(f)
    whole = f.read_bytes()
    for data in (b'', b'no image', whole[:len(whole)//2]):
        f.write_bytes(data)
        with pytest.raises(ValueError, match=f'The file {f} cannot be read as an image: .'): opener(f)
    f.unlink()
    with pytest.raises(FileNotFoundError, match=f'There is no file {f}$'): opener(f)
    Image.fromarray(np.array([[np.nan, 1.]], np.float32)).save(tmp_path/'nan.tif')
    with pytest.raises(ValueError, match='nan.tif cannot be read as an image: some of its values are no numbers'): opener(tmp_path/'nan.tif')


def test_which_files(tmp_path):
    "Endings are Pillow's, in any case; hidden files and folders are none"
    for name in ('a.JPG', 'b.jfif', 'c.webp', 'd.Png', 'e.jp2', 'f.bmp', 'notes.txt', '.g.jpg', 'film.mp4', 'none'): (tmp_path/name).write_text('')
    (tmp_path/'folder.jpg').mkdir()
    assert [o.name for o in picture_files(tmp_path)] == ['a.JPG', 'b.jfif', 'c.webp', 'd.Png', 'e.jp2', 'f.bmp']
    for ending in picture_endings(): assert Image.registered_extensions()[ending] in Image.OPEN


@pytest.mark.slow
def test_reasons(tmp_path):
    heic = b'\0\0\0\x18ftypheic' + bytes(200)
    for name in ('a.heic', 'renamed.jpg'): (tmp_path/name).write_bytes(heic)
    (tmp_path/'b.CR2').write_bytes(b'II*\0' + bytes(99))
    (tmp_path/'c.jpg').write_text('text')
    code = "from focusnet_fastai.data.pictures import picture_error\nfor o in ('a.heic', 'renamed.jpg'): print(picture_error(o))"
    said = fresh.python(code, cwd=tmp_path, without='pillow_heif').stdout.splitlines()
    assert len(said) == 2 and all('pip install pillow-heif, or convert it to JPEG' in o for o in said), said
    assert 'raw files: convert it to JPEG' in picture_error(tmp_path/'b.CR2') and picture_error(tmp_path/'c.jpg') == 'no image'
    assert picture_error(tmp_path/'gone.jpg') == 'No such file or directory'


def test_heic(tmp_path, opener):
    "With pillow-heif: upright whatever the camera says, also under another name, and damage is named"
    pytest.importorskip('pillow_heif')
    im = corners()
    for orientation, turned in ((1, im), (6, im.transpose(Image.Transpose.ROTATE_90)), (8, im.transpose(Image.Transpose.ROTATE_270))):
        ex = Image.Exif()
        ex[0x0112] = orientation
        for name in ('a.heic', 'renamed.jpg'):
            turned.save(tmp_path/name, format='HEIF', exif=ex.tobytes(), quality=100)
            got = np.asarray(opener(tmp_path/name)).astype(int)
            assert got.shape == np.asarray(im).shape and np.abs(got-np.asarray(im)).mean() < 6 and picture_error(tmp_path/name) == ''
    assert '.heic' in picture_endings()
    (tmp_path/'cut.heic').write_bytes((tmp_path/'a.heic').read_bytes()[:-200])
    with pytest.raises(ValueError, match='cut.heic cannot be read as an image: .'): opener(tmp_path/'cut.heic')
    assert picture_error(tmp_path/'cut.heic')


def test_an_open_file_is_closed(tmp_path):
    "No file stays open, also when it is damaged (Windows could not delete it)"
    corners().save(tmp_path/'a.png')
    (tmp_path/'b.png').write_bytes((tmp_path/'a.png').read_bytes()[:80])
    with warnings.catch_warnings():
        warnings.simplefilter('error', ResourceWarning)
        open_picture(tmp_path/'a.png')
        with pytest.raises(ValueError): open_picture(tmp_path/'b.png')
        assert picture_error(tmp_path/'b.png')
