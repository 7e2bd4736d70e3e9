"""MR R-CNN (Ding et al. 2019) with ResNet-101 and FPN; phases and commands as in configs/mr_rcnn_r50_fpn.py.

The paper reports box AP 41.4 and mask AP 37.1 on val2017 (Table 1; its Mask R-CNN has 40.1 and 36.1); nobody has
trained this one on COCO yet.
"""

from functools import partial

from jaxdet.configs.base import mask_rcnn
from jaxdet.configs.refined import refined
from jaxdet.experiment import Experiment


def get_config() -> Experiment:
    return refined(partial(mask_rcnn, depth=101))
