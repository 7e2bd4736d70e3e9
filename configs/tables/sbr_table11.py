"""SBR-CNN (Rossi et al. 2022), Table 11: SBR-CNN beside other models.

Left out are the rows of GC-Net and DCN, whose parts are not in jaxdet yet.
"""

import dataclasses
import functools

from configs.base import best_groie, condinst, fcc, htc, r3_cnn
from configs.tables.rows import CONDINST, GROIE_MASK, HTC, Row, by_name
from jaxdet.nn.extractors.single_level import SingleLevel

with_heads = functools.partial(r3_cnn, trunk=fcc("7x3", "first", before=True), score=fcc())  # Table 7 row 4

ROWS = {
    "row_1": dataclasses.replace(GROIE_MASK, note="taken from GRoIE's Table V"),
    "condinst": Row("CondInst", condinst(), 38.3, 34.4, params=CONDINST, note="the paper does not name its code"),
    "row_3": Row("HTC", htc(), 41.7, 36.9, params=HTC),
    "row_4": Row("SBR-CNN", with_heads(extractor=best_groie), 42.0, 39.2, params=(62_026_052, 61_800_708)),
    "row_4_boxes": Row(
        "SBR-CNN, GRoIE for boxes alone",
        with_heads(extractor=best_groie, mask_extractor=SingleLevel),
        None,
        params=(52_391_364, 52_166_020),
        note="not in the paper, but among the authors' configs",
    ),
}

get_config = by_name(ROWS)
