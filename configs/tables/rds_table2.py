"""RDSNet (Wang et al. 2020), Table 2: box AP on COCO test-dev of RetinaNet, with masks, and with boxes refined by them.

All with ResNet-101, images of 600 and of 800 pixels.
"""

import dataclasses

from jaxdet.configs.base import rdsnet, retinanet
from jaxdet.configs.tables.rows import RDSNET_R101, RDSNET_REFINE_R101, RETINANET_R101, Row, by_name
from jaxdet.experiment import Experiment


def small(experiment: Experiment) -> Experiment:
    """On images of 600 pixels."""
    return dataclasses.replace(experiment, data=dataclasses.replace(experiment.data, short_side=600, long_side=1000))


RETINANET, MASKS, REFINED = retinanet(depth=101), rdsnet(depth=101), rdsnet(depth=101, boxes_from="mbrm")

ROWS = {
    "retinanet_600": Row("RetinaNet, 600 pixels", small(RETINANET), 36.0, params=RETINANET_R101),
    "masks_600": Row("RDSNet without refinement, 600 pixels", small(MASKS), 36.1, params=RDSNET_R101),
    "mbrm_600": Row("RDSNet, 600 pixels", small(REFINED), 37.3, params=RDSNET_REFINE_R101),
    "retinanet_800": Row("RetinaNet, 800 pixels", RETINANET, 38.1, params=RETINANET_R101),
    "masks_800": Row("RDSNet without refinement, 800 pixels", MASKS, 39.4, params=RDSNET_R101),
    "mbrm_800": Row("RDSNet, 800 pixels", REFINED, 40.3, params=RDSNET_REFINE_R101),
}

get_config = by_name(ROWS)
