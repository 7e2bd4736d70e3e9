"""Cascade Mask R-CNN (Cai and Vasconcelos 2019) with ResNet-50 and FPN, 1x schedule on COCO.

The reference implementation publishes box AP 41.2 and mask AP 35.9 on val2017 for these settings (mmdetection's
model zoo, cascade_mask_rcnn_r50_fpn_1x_coco); nobody has trained this one on COCO yet.
"""

from jaxdet.configs.base import cascade_mask_rcnn
from jaxdet.experiment import Experiment


def get_config() -> Experiment:
    return cascade_mask_rcnn()
