"""Mask R-CNN (He et al. 2017) with ResNet-50 and FPN, 1x schedule on COCO.

The reference implementation publishes box AP 38.2 and mask AP 34.7 on val2017 for these settings (mmdetection's
model zoo, mask_rcnn_r50_fpn_1x_coco); nobody has trained this one on COCO yet.
"""

from jaxdet.configs.base import mask_rcnn
from jaxdet.experiment import Experiment


def get_config() -> Experiment:
    return mask_rcnn()
