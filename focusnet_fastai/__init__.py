"FocusNet for fastai: train an image classifier against the classes it keeps confusing."
from importlib.metadata import version, PackageNotFoundError

try: __version__ = version('focusnet_fastai')
except PackageNotFoundError: __version__ = '0+unknown'

del version, PackageNotFoundError
