"""Faster R-CNN (Ren et al. 2015) with ResNet-50 and FPN, 1x schedule on COCO.

The reference implementation publishes box AP 37.4 on val2017 for these settings (mmdetection's model zoo,
faster_rcnn_r50_fpn_1x_coco); nobody has trained this one on COCO yet.
"""

from jaxdet.configs.base import faster_rcnn
from jaxdet.experiment import Experiment


def get_config() -> Experiment:
    return faster_rcnn()
