"""Mask R-CNN with ResNeXt-101 32x8d (Xie et al. 2017) and FPN, 1x schedule on COCO.

The settings of mmdetection's mask_rcnn_x101_32x8d_fpn_1x_coco, whose backbone comes from Caffe2: BGR, and norms that
are not trained.  torchvision's weights of the same network want RGB and the numbers of the other configs, by
``model.normalization.channels=rgb``, ``.mean`` and ``.std``.  Nobody has trained this one on COCO yet.
"""

from jaxdet.configs.base import mask_rcnn, resnext101
from jaxdet.experiment import Experiment


def get_config() -> Experiment:
    return resnext101(mask_rcnn(), "32x8d")
