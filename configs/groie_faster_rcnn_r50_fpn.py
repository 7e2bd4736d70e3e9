"""Faster R-CNN with GRoIE as first published (Rossi et al. 2020), ResNet-50 and FPN, 1x schedule on COCO.

Boxes read all levels: 5x5 convolution, sum, attention.  Nobody has trained this one on COCO yet.  The published box AP
of 37.5, 1.0 more than without (Table V), is that of ``configs/tables/groie_table5.py:faster_groie``, with the settings
of its time.
"""

from jaxdet.configs.base import faster_rcnn, first_groie
from jaxdet.experiment import Experiment


def get_config() -> Experiment:
    return faster_rcnn(extractor=first_groie)
