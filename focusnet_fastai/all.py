"Everything for the notebook: `from focusnet_fastai.all import *`, after `from fastai.vision.all import *`; the rest stays in its own room."
from .loss import multi_warm_label, warm_summary, probability_difference, focus_terms, focus_picking_loss
from .loss import beta_for_confidence, confidence_for_beta
from .reference import Baseline, load_weights
from .checks import DivergedError
from .terms import LossTerms, StopDiverged
from .focusnet import FocusNetCallback, focus_settings
from .probabilities import cross_fitted, expected_calibration_error, fit_temperature
from .compare import Comparison, mcnemar
from .calibrate import calibrate
from .models import lenet5, small_cnn, thin_resnet, small_resnet18, small_resnet34, half_mobilenet_v2, complexity
from .precision import HalfPrecision, faster_precision
from .remembered import RememberedBaseline
from .self_reference import ClassMemory
from .self_memory import Memory, MovingAverage
from .focus import FocusClass, FocusEMA, FocusMemory, one_training
from .margins import MarginRecorder
from .diagnose import Diagnosis
from .label_sets import LabelSets
from .data.image_tensors import ImageTensors
from .data.memory import InMemoryDL, InMemoryLoaders, CropBatch, FlipBatch
from .data.convert import in_memory
from .data.digits import digits_dls
from .data.small import mnist_dls, cifar10_dls, cifar100_dls, tiny_imagenet_dls
from .data.photos import imagewoof_breeds, imagewoof_dls, cub200_dls, stanford_dogs_dls, imagenet_dls, imagenet_dogs_dls
from .data.folder import folder_dls
from .data.fixed_views import fixed_views
from .see.maps import contrast_maps
from .see.cam import class_maps
from .see.gradcam import gradcam_maps
from .see.examples import digit_learners, digit_quality
from .see.picking import pick_scenes, fixed_images
from .see.confusion import show_confusion
from .see.architecture import show_architecture
from .see.focus import show_focus, show_fixed
from .see.contrast import show_contrast
from .see.curves import difficulty_curve, plot_difficulty, plot_baseline_quality
from .see.reliability import plot_reliability
from .see.confused import confused_pairs
from .see.explore import ConfusionExplorer
from .see.panel import explore
from .app.paper_figures import make_figure
from .app.report import report_html
from .app.photo_network import photo_learner, FixedStatistics
from .docs import document as _document

_document(globals()) # so that `?` shows what parameters mean
