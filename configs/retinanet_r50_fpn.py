"""RetinaNet (Lin et al. 2017) with ResNet-50 and FPN, 1x schedule on COCO.

The reference implementation publishes box AP 36.5 on val2017 for these settings (mmdetection's model zoo,
retinanet_r50_fpn_1x_coco); nobody has trained this one on COCO yet.
"""

from jaxdet.configs.base import retinanet
from jaxdet.experiment import Experiment


def get_config() -> Experiment:
    return retinanet(depth=50)
