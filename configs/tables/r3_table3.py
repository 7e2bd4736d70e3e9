"""R3-CNN (Rossi et al. 2021), Table 3: so many loops, in training and at test."""

from jaxdet.configs.base import mask_rcnn, r3_cnn
from jaxdet.configs.tables.rows import MASK_RCNN, R3_NAIVE, Row, by_name


def make_row(loops: int, box_ap: float, mask_ap: float) -> Row:
    experiment = r3_cnn("a" * loops, mask_passes="head")
    return Row(f"R3-CNN, naive, loops: {loops}", experiment, box_ap, mask_ap, params=R3_NAIVE)


ROWS = {
    "row_1": Row("Mask R-CNN", mask_rcnn(), 38.2, 34.7, params=MASK_RCNN),
    "row_2": make_row(1, 37.7, 34.7),
    "row_3": make_row(2, 40.4, 36.4),
    "row_4": make_row(3, 40.9, 36.8),
    "row_5": make_row(4, 40.9, 36.8),
}

get_config = by_name(ROWS)
