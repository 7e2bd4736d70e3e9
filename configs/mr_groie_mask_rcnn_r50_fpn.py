"""MR R-CNN (Ding et al. 2019) whose refining step reads all levels by GRoIE (Rossi et al. 2022), ResNet-50 and FPN.

A mixture; nobody has trained it.  GRoIE's own layers start afresh in the second phase.
Phases and commands are as in configs/mr_rcnn_r50_fpn.py.
"""

from jaxdet.configs.base import best_groie, mask_rcnn
from jaxdet.configs.refined import refined
from jaxdet.experiment import Experiment


def get_config() -> Experiment:
    return refined(mask_rcnn, best_groie)
