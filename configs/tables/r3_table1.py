"""R3-CNN (Rossi et al. 2021), Table 1: beside Mask R-CNN and HTC; thresholds that rise and fall.

In the code that made R3-CNN's tables the mask branch of step t does not look t times more at its crops while training
(``mask_passes="head"``); SBR-CNN's code does, which is why the same model has a higher mask AP there.
"""

from jaxdet.configs.base import fcc, htc, mask_rcnn, r3_cnn
from jaxdet.configs.tables.rows import HTC, MASK_RCNN, R3_ADVANCED, R3_NAIVE, Row, by_name

ROWS = {
    "row_1": Row("Mask R-CNN", mask_rcnn(), 38.2, 34.7, "44,170 K", MASK_RCNN),
    "row_2": Row("Mask R-CNN, 3x schedule", mask_rcnn(epochs=36), 39.2, 35.5, "44,170 K", MASK_RCNN),
    "row_3": Row("HTC", htc(), 41.7, 36.9, "77,230 K", HTC),
    "row_4": Row("R3-CNN, naive", r3_cnn(mask_passes="head"), 40.9, 36.8, "43,912 K", R3_NAIVE),
    "row_5": Row(
        "R3-CNN, naive, falling thresholds",
        r3_cnn(ious=(0.7, 0.6, 0.5), mask_passes="head"),
        40.4,
        36.7,
        "43,912 K",
        R3_NAIVE,
    ),
    "row_6": Row(
        "R3-CNN, advanced: L2C 7x7, NLb; mask IoU by L2C 7x7, NLb, NLa",
        r3_cnn(trunk=fcc(before=True), score=fcc(before=True, after=True), mask_passes="head"),
        42.0,
        38.2,
        "50,072 K",
        R3_ADVANCED,
    ),
}

get_config = by_name(ROWS)
