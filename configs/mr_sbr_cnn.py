"""SBR-CNN (Rossi et al. 2022) whose detections are refined as in MR R-CNN (Ding et al. 2019), ResNet-50 and FPN.

A mixture; nobody has trained it.  The head that rates masks rates the refined ones.
Phases and commands are as in configs/mr_rcnn_r50_fpn.py.
"""

from jaxdet.configs.refined import refined
from jaxdet.configs.sbr_cnn import get_config as sbr_cnn
from jaxdet.experiment import Experiment


def get_config() -> Experiment:
    return refined(sbr_cnn)
