"Everything for the notebook: `from focusnet_fastai.all import *`, after `from fastai.vision.all import *`. What only serves other modules stays in its own."
from .loss import multi_warm_label, warm_summary, probability_difference, focus_terms, focus_picking_loss
from .terms import Baseline, LossTerms, load_weights
from .focusnet import FocusNetCallback, Comparison, mcnemar, expected_calibration_error
from .models import lenet5, small_cnn, thin_resnet, small_resnet18, small_resnet34, half_mobilenet_v2, complexity
from .data import digits_dls, in_memory, ImageTensors, InMemoryDL, InMemoryLoaders, CropBatch, FlipBatch
from .datasets import mnist_dls, cifar10_dls, cifar100_dls, tiny_imagenet_dls
from .photos import imagewoof_breeds, imagewoof_dls, cub200_dls, stanford_dogs_dls, imagenet_dls, imagenet_dogs_dls
from .folder import folder_dls
from .cam import class_maps, gradcam_maps, contrast_maps
from .examples import digit_learners, digit_quality
from .scenes import pick_scenes, fixed_images
from .plots import difficulty_curve, plot_difficulty, plot_baseline_quality
from .figures import show_confusion, show_focus, show_fixed, make_figure
from .explore import explore, confused_pairs, ConfusionExplorer
from .report import report_html
from .photonet import photo_learner, FixedStatistics
