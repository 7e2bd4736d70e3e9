"""Mask R-CNN with modulated deformable convolutions in C3 to C5 (DCNv2, Zhu et al. 2019), ResNet-50 and FPN.

1x schedule on COCO.  The reference implementation publishes box AP 41.5 and mask AP 37.1 on val2017 for these settings
(mmdetection's model zoo, mask_rcnn_r50_fpn_mdconv_c3-c5_1x_coco); nobody has trained this one on COCO yet.
"""

from jaxdet.configs.base import mask_rcnn, with_backbone
from jaxdet.experiment import Experiment


def get_config() -> Experiment:
    return with_backbone(mask_rcnn(), deform="v2")
