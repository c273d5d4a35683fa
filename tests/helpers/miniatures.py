"Generated pictures, and miniatures of the data sets in their true layout"
import pickle, random, shutil
from pathlib import Path
import numpy as np
from PIL import Image
from scipy.io import savemat
from focusnet_fastai.data.small import cifar10_classes

FOLDERS = ['n02086240', 'n02087394', 'n02088364', 'n02089973', 'n02093754', 'n02096294', 'n02099601', 'n02105641', 'n02111889', 'n02115641']  # of Imagewoof


def quietly(learn, f, *args, **kwargs):
    with learn.no_bar(): return f(*args, **kwargs)


def save(path, size=(8, 8), mode='RGB', seed=0, **kwargs):
    "A generated image; its first pixel is at least 100 in every channel"
    path.parent.mkdir(parents=True, exist_ok=True)
    a = np.random.RandomState(seed).randint(100, 256, (size[1], size[0], *[3][:mode == 'RGB'])).astype(np.uint8)
    Image.fromarray(a).save(path, **kwargs)
    return a


def mini_mnist(path):
    for s, n in (('training', 2), ('testing', 1)):
        for c in range(10):
            for i in range(n): save(path/s/f'{c}'/f'{100*c + i}.png', (28, 28), 'L', c)
    return path


def mini_cifar10(path):
    for s, n in (('train', 2), ('test', 1)):
        for i, c in enumerate(cifar10_classes):
            for j in range(n): save(path/s/c/f'{j}_{c}.png', (32, 32), seed=i)
    (path/'labels.txt').write_text('\n'.join(cifar10_classes))
    return path


def mini_cifar100(path):
    "The three pickles of the original"
    path.mkdir(parents=True)
    names = [f'class_{i:02}' for i in range(100)]
    rng = np.random.RandomState(0)
    for s, n in (('train', 200), ('test', 100)):
        d = {'data': rng.randint(0, 256, (n, 3072)).astype(np.uint8), 'fine_labels': [i % 100 for i in range(n)], 'coarse_labels': [0]*n, 'filenames': ['']*n}
        (path/s).write_bytes(pickle.dumps(d, 2))
    (path/'meta').write_bytes(pickle.dumps({'fine_label_names': names, 'coarse_label_names': ['all']}, 2))
    return path


def mini_cub(path, n=(2, 1)):
    "200 species; the original also has a file beside its folder"
    root, birds = path/'CUB_200_2011', [f'{i+1:03}.Bird_of_kind_{i}' for i in range(200)]
    (path/'attributes.txt').parent.mkdir(parents=True)
    (path/'attributes.txt').write_text('1 has_bill_shape::curved')
    files = [(f'{b}/{b[4:]}_{j:04}.jpg', i + 1, int(j < n[0])) for i, b in enumerate(birds) for j in range(sum(n))]
    for f, c, _ in files: save(root/'images'/f, (12, 10), seed=c)
    (root/'classes.txt').write_text(''.join(f'{i+1} {b}\n' for i, b in enumerate(birds)))
    (root/'images.txt').write_text(''.join(f'{i+1} {f}\n' for i, (f, *_) in enumerate(files)))
    (root/'image_class_labels.txt').write_text(''.join(f'{i+1} {c}\n' for i, (_, c, _) in enumerate(files)))
    (root/'train_test_split.txt').write_text(''.join(f'{i+1} {t}\n' for i, (*_, t) in enumerate(files)))
    return path


def mini_dogs(path):
    "Photographs in Images, lists beside it"
    dogs = [f'n020{85620+i}-Dog_no_{i}' for i in range(119)] + ['n02116738-African_hunting_dog']
    for s, n in (('train', 2), ('test', 1)):
        files = [f'{d}/{d[:9]}_{s}{j}.jpg' for d in dogs for j in range(n)]
        for f in files: save(path/'Images'/f, (12, 10))
        col = np.empty((len(files), 1), dtype=object); col[:, 0] = files
        savemat(path/f'{s}_list.mat', dict(file_list=col, annotation_list=col, labels=np.array([[dogs.index(f.split('/')[0]) + 1] for f in files])))
    return path


def mini_tiny(path):
    ids = [f'n{1443537+i:08}' for i in range(200)]
    for i, o in enumerate(ids):
        for j in range(2): save(path/'train'/o/'images'/f'{o}_{j}.JPEG', (64, 64), 'L' if i == 3 else 'RGB', i)  # some are grey
        (path/'train'/o/f'{o}_boxes.txt').write_text(f'{o}_0.JPEG\t0\t0\t62\t62\n')
        save(path/'val'/'images'/f'val_{i}.JPEG', (64, 64), seed=i)
    (path/'val'/'val_annotations.txt').write_text(''.join(f'val_{i}.JPEG\t{ids[199-i]}\t0\t32\t44\t62\n' for i in range(200)))
    save(path/'test'/'images'/'test_0.JPEG', (64, 64))
    (path/'wnids.txt').write_text('\n'.join(random.Random(0).sample(ids, 200)))
    (path/'words.txt').write_text(''.join(f"{o}\t{'crane' if i in (5, 9) else f'thing {i}'}, other word\n" for i, o in enumerate(ids)) + 'n99999999\tnot used\n')
    return path


def mini_imagenet(path, n=1):
    "A thousand classes; the dogs' numbers are those of their first and last breed"
    ids = [f'n{1440764+i:08}' for i in range(151)] + [f'n{2085620+i:08}' for i in range(117)] + ['n02113978'] + [f'n{2114367+i:08}' for i in range(731)]
    one = path/'one.JPEG'; save(one, (100, 70), quality=90)
    for s in ('train', 'val'):
        for o in ids:
            (path/s/o).mkdir(parents=True)
            for i in range(n): shutil.copy(one, path/s/o/f'{o}_{i}.JPEG')
    one.unlink()
    return path


def miniature(path, n=(3, 2), size=(200, 160)):
    "Generated JPEGs in the layout of the true archive"
    rng = np.random.RandomState(0)
    for s, k in zip(('train', 'val'), n):
        for c, folder in enumerate(FOLDERS):
            (path/s/folder).mkdir(parents=True)
            for i in range(k):
                colour = rng.randint(60, 200, 3)
                im = np.clip(colour + rng.randint(-20, 20, (size[1], size[0], 3)), 0, 255).astype(np.uint8)
                Image.fromarray(im).save(path/s/folder/f'ILSVRC2012_val_{c:04}{i:04}.JPEG', quality=90)
    return path
