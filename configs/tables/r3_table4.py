"""R3-CNN (Rossi et al. 2021), Table 4: beside other models and combined with them.

"R3-CNN-L" is the advanced model of Table 1.  Left out are the rows of GC-Net and DCN, whose parts are not in jaxdet
yet.
"""

import dataclasses
import functools

from configs.base import fcc, first_groie, htc, mask_rcnn, r3_cnn
from configs.tables.rows import GROIE_MASK, HTC, R3_ADVANCED, Row, by_name

advanced = functools.partial(r3_cnn, trunk=fcc(before=True), score=fcc(before=True, after=True), mask_passes="head")

ROWS = {
    "row_1": dataclasses.replace(GROIE_MASK, note="taken from GRoIE's Table V"),
    "row_2": Row("HTC", htc(), 41.7, 36.9, params=HTC),
    "row_3": Row("R3-CNN-L", advanced(), 42.0, 38.2, params=R3_ADVANCED),
    "row_4": Row("Mask R-CNN + GRoIE", mask_rcnn(first_groie), 38.6, 35.8, params=(48_190_258, 47_964_914)),
    "row_5": Row("R3-CNN-L + GRoIE", advanced(extractor=first_groie), 42.0, 39.1),
}

get_config = by_name(ROWS)
