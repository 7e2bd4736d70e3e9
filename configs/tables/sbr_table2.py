"""SBR-CNN (Rossi et al. 2022), Table 2: R3-CNN beside Mask R-CNN and HTC."""

from jaxdet.configs.base import htc, mask_rcnn, r3_cnn
from jaxdet.configs.tables.rows import HTC, MASK_RCNN, R3_DEEPER, R3_NAIVE, Row, by_name

ROWS = {
    "row_1": Row("Mask R-CNN", mask_rcnn(), 38.2, 34.7, "44,170 K", MASK_RCNN),
    "row_2": Row("Mask R-CNN, 3x schedule", mask_rcnn(epochs=36), 39.2, 35.5, "44,170 K", MASK_RCNN),
    "row_3": Row("HTC", htc(), 41.7, 36.9, "77,230 K", HTC),
    "row_4": Row("R3-CNN, naive", r3_cnn(), 40.9, 37.2, "43,912 K", R3_NAIVE),
    "row_5": Row("R3-CNN, deeper (aab)", r3_cnn("aab"), 41.8, 37.5, "60,604 K", R3_DEEPER),
}

get_config = by_name(ROWS)
