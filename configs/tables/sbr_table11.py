"""SBR-CNN (Rossi et al. 2022), Table 11: SBR-CNN beside other models, and combined with GC-Net and DCN."""

import dataclasses
import functools

from jaxdet.configs.base import best_groie, condinst, fcc, htc, r3_cnn
from jaxdet.configs.tables.rows import (
    CONDINST,
    DCN_HTC,
    DCN_MASK,
    GCNET_HTC,
    GCNET_MASK,
    GROIE_MASK,
    HTC,
    Row,
    by_name,
    dcn,
    gcnet,
)
from jaxdet.nn.extractors.single_level import SingleLevel

with_heads = functools.partial(r3_cnn, trunk=fcc("7x3", "first", before=True), score=fcc())  # Table 7 row 4

SBR_CNN = with_heads(extractor=best_groie)

ROWS = {
    "row_1": dataclasses.replace(GROIE_MASK, note="taken from GRoIE's Table V"),
    "condinst": Row("CondInst", condinst(), 38.3, 34.4, params=CONDINST, note="the paper does not name its code"),
    "row_3": Row("HTC", htc(), 41.7, 36.9, params=HTC),
    "row_4": Row("SBR-CNN", SBR_CNN, 42.0, 39.2, params=(62_026_052, 61_800_708)),
    "row_4_boxes": Row(
        "SBR-CNN, GRoIE for boxes alone",
        with_heads(extractor=best_groie, mask_extractor=SingleLevel),
        None,
        params=(52_391_364, 52_166_020),
        note="not in the paper, but among the authors' configs",
    ),
    "row_5": GCNET_MASK,
    "row_6": GCNET_HTC,
    "row_7": Row("SBR-CNN + GC-Net", gcnet(SBR_CNN), 44.8, 41.3, params=(72_026_961, 71_801_617)),
    "row_8": DCN_MASK,
    "row_9": DCN_HTC,
    "row_10": Row("SBR-CNN + DCN", dcn(SBR_CNN), 45.3, 41.5, params=(62_606_894, 62_381_550)),
}

get_config = by_name(ROWS)
