"""RDSNet (Wang et al. 2020) with ResNet-50 and FPN, 1x schedule on COCO, without boundary refinement.

The authors report box AP 36.8 and mask AP 32.1 on val2017 for these settings (README of their code, wangsr126/RDSNet,
rdsnet_r50_fpn_1x); nobody has trained this one on COCO yet.
"""

from jaxdet.configs.base import rdsnet
from jaxdet.experiment import Experiment


def get_config() -> Experiment:
    return rdsnet(depth=50)
