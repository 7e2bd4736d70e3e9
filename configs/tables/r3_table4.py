"""R3-CNN (Rossi et al. 2021), Table 4: beside other models and combined with them.

"R3-CNN-L" is the advanced model of Table 1.
"""

import dataclasses
import functools

from jaxdet.configs.base import fcc, first_groie, htc, mask_rcnn, r3_cnn
from jaxdet.configs.tables.rows import (
    DCN_HTC,
    DCN_MASK,
    GCNET_HTC,
    GCNET_MASK,
    GROIE_MASK,
    HTC,
    R3_ADVANCED,
    Row,
    by_name,
    dcn,
    gcnet,
)

advanced = functools.partial(r3_cnn, trunk=fcc(before=True), score=fcc(before=True, after=True), mask_passes="head")

ROWS = {
    "row_1": dataclasses.replace(GROIE_MASK, note="taken from GRoIE's Table V"),
    "row_2": Row("HTC", htc(), 41.7, 36.9, params=HTC),
    "row_3": Row("R3-CNN-L", advanced(), 42.0, 38.2, params=R3_ADVANCED),
    "row_4": Row("Mask R-CNN + GRoIE", mask_rcnn(first_groie), 38.6, 35.8, params=(48_190_258, 47_964_914)),
    "row_5": Row("R3-CNN-L + GRoIE", advanced(extractor=first_groie), 42.0, 39.1),
    "row_6": GCNET_MASK,
    "row_7": GCNET_HTC,
    "row_8": Row("R3-CNN-L + GC-Net", gcnet(advanced()), 44.3, 40.2),
    "row_9": DCN_MASK,
    "row_10": DCN_HTC,
    "row_11": Row("R3-CNN-L + DCN", dcn(advanced()), 44.8, 40.4),
}

get_config = by_name(ROWS)
