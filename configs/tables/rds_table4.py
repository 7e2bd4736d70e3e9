"""RDSNet (Wang et al. 2020), Table 4: box AP on COCO val, of boxes regressed, around masks, and refined by them.

ResNet-101, images of 600 pixels.
"""

from jaxdet.configs.base import rdsnet
from jaxdet.configs.tables.rds_table2 import small
from jaxdet.configs.tables.rows import RDSNET_REFINE_R101, Row, by_name

ROWS = {
    "baseline": Row(
        "RDSNet, boxes as regressed", small(rdsnet(101, boxes_from="regression")), 35.9, params=RDSNET_REFINE_R101
    ),
    "direct": Row("RDSNet, boxes around masks", small(rdsnet(101, boxes_from="mask")), 34.2, params=RDSNET_REFINE_R101),
    "mbrm": Row("RDSNet, boxes refined", small(rdsnet(101, boxes_from="mbrm")), 37.2, params=RDSNET_REFINE_R101),
}

get_config = by_name(ROWS)
