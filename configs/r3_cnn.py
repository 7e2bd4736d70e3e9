"""R3-CNN, naive (Rossi et al. 2021): one head in a loop of three steps, ResNet-50 and FPN, 1x schedule on COCO.

Published: box AP 40.9, mask AP 37.2 (SBR-CNN, Table 2 row 4); nobody has trained this one on COCO yet.  The deeper
model has a second head for the last step; that and every other row of the papers' tables is in ``configs/tables/``.
"""

from jaxdet.configs.base import r3_cnn
from jaxdet.experiment import Experiment


def get_config() -> Experiment:
    return r3_cnn("aaa")
