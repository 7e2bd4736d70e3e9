"""Hybrid Task Cascade (Chen et al. 2019) with its semantic branch, ResNet-50 and FPN, 1x schedule on COCO.

The branch learns COCO-stuff's maps, which lie beside the images in ``stuffthingmaps``; box and mask branches add what
it sees to their crops.  The reference implementation publishes box AP 42.3 and mask AP 37.4 on val2017 for these
settings (mmdetection's model zoo, htc_r50_fpn_1x_coco); nobody has trained this one on COCO yet.
"""

from jaxdet.configs.base import htc
from jaxdet.experiment import Experiment


def get_config() -> Experiment:
    return htc(semantic=True)
