"""SBR-CNN (Rossi et al. 2022), Table 4: so many loops at test.  Rows 2 to 6 are one trained model, row 4 of Table 2."""

from jaxdet.configs.base import mask_rcnn, r3_cnn
from jaxdet.configs.tables.rows import MASK_RCNN, R3_NAIVE, Row, by_name


def make_row(loops: int, box_ap: float, mask_ap: float) -> Row:
    experiment = r3_cnn(test_loops=loops)
    return Row(f"R3-CNN, naive, loops: 3, at test: {loops}", experiment, box_ap, mask_ap, params=R3_NAIVE)


ROWS = {
    "row_1": Row("Mask R-CNN", mask_rcnn(), 38.2, 34.7, params=MASK_RCNN),
    "row_2": make_row(1, 37.7, 35.1),
    "row_3": make_row(2, 40.5, 36.9),
    "row_4": make_row(3, 40.9, 37.2),
    "row_5": make_row(4, 40.8, 37.2),
    "row_6": make_row(5, 40.9, 37.3),
}

get_config = by_name(ROWS)
