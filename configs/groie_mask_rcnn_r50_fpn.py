"""Mask R-CNN with GRoIE as first published (Rossi et al. 2020), ResNet-50 and FPN, 1x schedule on COCO.

Boxes read all levels, for the box head and for the mask head: 5x5 convolution, sum, attention.  Published: box AP 38.6
and mask AP 35.8 (R3-CNN Table 4, row 4); nobody has trained this one on COCO yet.  GRoIE's own Table V (38.4 and 35.8)
has other settings: ``configs/tables/groie_table5.py:mask_groie``.
"""

from jaxdet.configs.base import first_groie, mask_rcnn
from jaxdet.experiment import Experiment


def get_config() -> Experiment:
    return mask_rcnn(extractor=first_groie)
