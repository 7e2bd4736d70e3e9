"""RDSNet (Wang et al. 2020), Table 1: mask AP on COCO test-dev, with ResNet-101.

FCIS and TensorMask, with which the table begins and ends, are not in jaxdet.
"""

from jaxdet.configs.base import mask_rcnn, rdsnet, yolact
from jaxdet.configs.tables.rows import RDSNET_R101, Row, by_name, deeper, rdsnet_s
from jaxdet.data.settings import ShortSide
from jaxdet.nn.heads.trunk import FC2

ROWS = {
    "mask_rcnn": Row("Mask R-CNN", deeper(mask_rcnn()), None, 36.2),
    "ms_rcnn": Row("Mask Scoring R-CNN", deeper(mask_rcnn(score=FC2)), None, 37.4),
    "yolact": Row("YOLACT, 550 pixels", yolact(depth=101), None, 29.8),
    "rdsnet_s": Row("RDSNet_s, 550 pixels", rdsnet_s(), None, 32.1),
    "rdsnet": Row("RDSNet, 1x", rdsnet(depth=101), None, 34.6, params=RDSNET_R101),
    "rdsnet_2x": Row(
        "RDSNet, 2x, short sides of 640 to 800 pixels",
        rdsnet(depth=101, epochs=24, augment=(ShortSide(640),)),
        None,
        36.4,
        params=RDSNET_R101,
    ),
}

get_config = by_name(ROWS)
