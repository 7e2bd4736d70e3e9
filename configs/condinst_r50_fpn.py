"""CondInst (Tian et al. 2020) with ResNet-50 and FPN, 90,000 steps on COCO.

The reference implementation publishes box AP 39.8 and mask AP 36.0 on val2017 for these settings (mmdetection's model
zoo, condinst_r50_fpn_ms-poly-90k_coco); nobody has trained this one on COCO yet.
"""

from jaxdet.configs.base import condinst
from jaxdet.experiment import Experiment


def get_config() -> Experiment:
    return condinst(depth=50)
