"""Mask R-CNN with deformable convolutions in C3 to C5 (DCN, Dai et al. 2017), ResNet-50 and FPN, 1x schedule on COCO.

The reference implementation publishes box AP 41.8 and mask AP 37.4 on val2017 for these settings (mmdetection's model
zoo, mask_rcnn_r50_fpn_dconv_c3-c5_1x_coco); nobody has trained this one on COCO yet.
"""

from jaxdet.configs.base import mask_rcnn, with_backbone
from jaxdet.experiment import Experiment


def get_config() -> Experiment:
    return with_backbone(mask_rcnn(), deform="v1")
