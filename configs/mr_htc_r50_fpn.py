"""Hybrid Task Cascade (Chen et al. 2019), refined as in MR R-CNN (Ding et al. 2019), ResNet-50 and FPN.

A mixture; nobody has trained it.  Refined are the boxes of the last stage, by the mean of the masks of all three.
Phases and commands are as in configs/mr_rcnn_r50_fpn.py.
"""

from jaxdet.configs.base import htc
from jaxdet.configs.refined import refined
from jaxdet.experiment import Experiment


def get_config() -> Experiment:
    return refined(htc)
