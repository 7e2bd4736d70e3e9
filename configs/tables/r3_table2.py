"""R3-CNN (Rossi et al. 2021), Table 2: so many loops at test.  Rows 2 to 6 are one trained model, row 4 of Table 1."""

from jaxdet.configs.base import mask_rcnn, r3_cnn
from jaxdet.configs.tables.rows import MASK_RCNN, R3_NAIVE, Row, by_name


def make_row(loops: int, box_ap: float, mask_ap: float) -> Row:
    experiment = r3_cnn(mask_passes="head", test_loops=loops)
    return Row(f"R3-CNN, naive, loops: 3, at test: {loops}", experiment, box_ap, mask_ap, params=R3_NAIVE)


ROWS = {
    "row_1": Row("Mask R-CNN", mask_rcnn(), 38.2, 34.7, params=MASK_RCNN),
    "row_2": make_row(1, 37.9, 35.4),
    "row_3": make_row(2, 40.5, 36.6),
    "row_4": make_row(3, 40.9, 36.8),
    "row_5": make_row(4, 40.9, 36.7),
    "row_6": make_row(5, 40.9, 36.7),
}

get_config = by_name(ROWS)
