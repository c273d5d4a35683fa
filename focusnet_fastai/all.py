"Everything for the notebook: `from focusnet_fastai.all import *`, after `from fastai.vision.all import *`."
from .loss import *
from .terms import *
from .focusnet import *
from .models import *
from .data import *
from .files import *
from .datasets import *
from .photos import *
from .folder import *
from .cam import *
from .examples import *
from .scenes import *
from .drawing import *
from .plots import *
from .figures import *
from .looks import *
from .explore import *
from .report import report_html
from .photonet import photo_learner, FixedStatistics
