"""Hybrid Task Cascade (Chen et al. 2019) without its semantic branch, ResNet-50 and FPN, 1x schedule on COCO.

The papers of R3-CNN and SBR-CNN compare with it: box AP 41.7, mask AP 36.9 (SBR-CNN, Table 2 row 3); nobody has
trained this one on COCO yet.
"""

from jaxdet.configs.base import htc
from jaxdet.experiment import Experiment


def get_config() -> Experiment:
    return htc()
