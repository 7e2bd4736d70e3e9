"""SBR-CNN (Rossi et al. 2022), Table 3: so many loops, in training and at test."""

from jaxdet.configs.base import mask_rcnn, r3_cnn
from jaxdet.configs.tables.rows import MASK_RCNN, R3_NAIVE, Row, by_name


def make_row(loops: int, box_ap: float, mask_ap: float) -> Row:
    return Row(f"R3-CNN, naive, loops: {loops}", r3_cnn("a" * loops), box_ap, mask_ap, params=R3_NAIVE)


ROWS = {
    "row_1": Row("Mask R-CNN", mask_rcnn(), 38.2, 34.7, params=MASK_RCNN),
    "row_2": make_row(1, 37.6, 34.6),
    "row_3": make_row(2, 40.4, 36.7),
    "row_4": make_row(3, 40.9, 37.2),
    "row_5": make_row(4, 40.9, 37.4),
}

get_config = by_name(ROWS)
