"""Mask R-CNN with global context blocks in C3 to C5 (GC-Net, Cao et al. 2019), ResNet-50 and FPN, 1x schedule on COCO.

The reference implementation publishes box AP 39.9 and mask AP 36.0 on val2017 for these settings (mmdetection's model
zoo, mask_rcnn_r50_fpn_r4_gcb_c3-c5_1x_coco), and 40.7 and 36.5 with ``model.backbone.norm=sync_batch``; nobody has
trained this one on COCO yet.
"""

from jaxdet.configs.base import mask_rcnn, with_backbone
from jaxdet.experiment import Experiment


def get_config() -> Experiment:
    return with_backbone(mask_rcnn(), context=4)
