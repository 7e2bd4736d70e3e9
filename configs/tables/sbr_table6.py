"""SBR-CNN (Rossi et al. 2022), Table 6: convolutions (L2C) and non-local blocks (NLb, NLa) in the box head."""

from jaxdet.configs.base import CASCADE_STDS, fcc, htc, r3_cnn
from jaxdet.configs.tables.rows import HTC, R3_DEEPER, R3_NAIVE, Row, by_name

ROWS = {
    "row_1": Row("HTC", htc(), 41.7, 36.9, "77.2M", HTC),
    "row_2": Row("R3-CNN", r3_cnn(), 40.9, 37.2, "43.9M", R3_NAIVE),
    "row_3": Row("R3-CNN, L2C 7x7", r3_cnn(trunk=fcc()), 39.8, 36.4, "32.2M", (32_429_300, 32_203_956)),
    "row_4": Row("R3-CNN, L2C 7x3", r3_cnn(trunk=fcc("7x3")), 40.6, 36.8, "32.7M", (33_003_124, 32_777_780)),
    "row_5": Row("R3-CNN, L2C 7x7, NLb", r3_cnn(trunk=fcc(before=True)), 41.8, 37.6, "38.6M", (38_852_468, 38_627_124)),
    "row_6": Row(
        "R3-CNN, L2C 7x3, NLb",
        r3_cnn(trunk=fcc("7x3", "first", before=True), mask_passes="head"),
        41.7,
        37.6,
        "37.9M",
        (38_135_860, 37_910_516),
        note="the first of each pair of convolutions lowers the channels; no mask loop in training",
    ),
    "row_7": Row(
        "R3-CNN, L2C 7x7, NLb, NLa",
        r3_cnn(trunk=fcc(before=True, after=True)),
        41.8,
        37.6,
        "39.0M",
        (39_254_036, 39_028_692),
    ),
    "row_8": Row("R3-CNN, aabb", r3_cnn("aabb"), 41.9, 37.5, params=R3_DEEPER),
    "row_9": Row("R3-CNN, aabb, L2C 7x7", r3_cnn("aabb", trunk=fcc()), 41.4, 37.2, "37.1M", (37_412_249, 37_186_905)),
    "row_10": Row(
        "R3-CNN, aabb, L2C 7x3",
        r3_cnn("aabb", trunk=fcc("7x3"), stds=(CASCADE_STDS[0], CASCADE_STDS[0])),
        41.0,
        37.1,
        "38.3M",
        (38_559_897, 38_334_553),
        note="both heads scale their deltas alike, other than in the rows beside it",
    ),
    "row_11": Row(
        "R3-CNN, aabb, L2C 7x7, NLb",
        r3_cnn("aabb", trunk=fcc(before=True)),
        42.9,
        38.1,
        "50.0M",
        (50_258_585, 50_033_241),
    ),
    "row_12": Row(
        "R3-CNN, aabb, L2C 7x3, NLb",
        r3_cnn("aabb", trunk=fcc("7x3", before=True)),
        42.6,
        37.8,
        "51.1M",
        (51_406_233, 51_180_889),
    ),
}

get_config = by_name(ROWS)
