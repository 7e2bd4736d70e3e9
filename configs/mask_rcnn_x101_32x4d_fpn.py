"""Mask R-CNN with ResNeXt-101 32x4d (Xie et al. 2017) and FPN, 1x schedule on COCO.

The reference implementation publishes box AP 41.9 and mask AP 37.5 on val2017 for these settings (mmdetection's model
zoo, mask_rcnn_x101_32x4d_fpn_1x_coco); nobody has trained this one on COCO yet.
"""

from jaxdet.configs.base import mask_rcnn, resnext101
from jaxdet.experiment import Experiment


def get_config() -> Experiment:
    return resnext101(mask_rcnn(), "32x4d")
