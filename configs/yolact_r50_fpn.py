"""YOLACT (Bolya et al. 2019) with ResNet-50 and FPN, 55 epochs on COCO at 550 pixels.

The reference implementation publishes mask AP 29.0 on val2017 for these settings (mmdetection's model zoo,
yolact_r50_1x8_coco); nobody has trained this one on COCO yet.
"""

from jaxdet.configs.base import yolact
from jaxdet.experiment import Experiment


def get_config() -> Experiment:
    return yolact(depth=50)
