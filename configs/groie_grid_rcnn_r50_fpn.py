"""Grid R-CNN with GRoIE as first published (Rossi et al. 2020), ResNet-50 and FPN, 1x schedule on COCO.

Class head and grid read all levels.  Published: box AP 39.8 (GRoIE's Table V, whose settings are those of
``configs/tables/groie_table5.py:grid_groie``); nobody has trained this one on COCO yet.
"""

from jaxdet.configs.base import first_groie
from jaxdet.configs.grid import grid_rcnn
from jaxdet.experiment import Experiment


def get_config() -> Experiment:
    return grid_rcnn(first_groie)
