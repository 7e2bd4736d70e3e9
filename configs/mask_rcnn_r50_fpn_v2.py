"""Mask R-CNN (He et al. 2017) as torchvision's second generation has it, with ResNet-50 and FPN, 1x schedule.

torchvision publishes box AP 47.4 and mask AP 41.8 on val2017 for its weights of this model, maskrcnn_resnet50_fpn_v2,
which were trained longer and with stronger augmentation; nobody has trained this one on COCO yet.
"""

from jaxdet.configs.base import rcnn_v2
from jaxdet.experiment import Experiment


def get_config() -> Experiment:
    return rcnn_v2(masks=True)
