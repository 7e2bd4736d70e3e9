"""Mask Scoring R-CNN (Huang et al. 2019) with ResNet-50 and FPN, 1x schedule on COCO.

Mask R-CNN with a branch that predicts how well each mask fits, which rates the masks.  The reference implementation
publishes box AP 38.2 and mask AP 36.0 on val2017, with a caffe-style backbone (mmdetection's model zoo,
ms_rcnn_r50_caffe_fpn_1x_coco); nobody has trained this one on COCO yet.
"""

from jaxdet.configs.base import mask_rcnn
from jaxdet.experiment import Experiment
from jaxdet.nn.heads.trunk import FC2


def get_config() -> Experiment:
    return mask_rcnn(score=FC2)
