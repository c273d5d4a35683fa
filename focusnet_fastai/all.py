"Everything for the notebook: `from focusnet_fastai.all import *`, after `from fastai.vision.all import *`."
from .loss import *
from .terms import *
from .focusnet import *
from .models import *
from .data import *
from .datasets import *
from .cam import *
from .figures import *
from .explore import *
