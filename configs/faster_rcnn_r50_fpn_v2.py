"""Faster R-CNN (Ren et al. 2015) as torchvision's second generation has it, with ResNet-50 and FPN, 1x schedule.

torchvision publishes box AP 46.7 on val2017 for its weights of this model, fasterrcnn_resnet50_fpn_v2,
which were trained longer and with stronger augmentation; nobody has trained this one on COCO yet.
"""

from jaxdet.configs.base import rcnn_v2
from jaxdet.experiment import Experiment


def get_config() -> Experiment:
    return rcnn_v2(masks=False)
