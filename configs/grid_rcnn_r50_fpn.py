"""Grid R-CNN (Lu et al. 2019), ResNet-50 and FPN, 1x schedule on COCO.

Heat maps of nine points of a grid say where a box is.  Published: box AP 39.1 (GRoIE's Table V, whose settings are
those of ``configs/tables/groie_table5.py:grid``); nobody has trained this one on COCO yet.
"""

from jaxdet.configs.grid import grid_rcnn
from jaxdet.experiment import Experiment


def get_config() -> Experiment:
    return grid_rcnn()
