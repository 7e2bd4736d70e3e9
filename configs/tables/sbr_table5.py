"""SBR-CNN (Rossi et al. 2022), Table 5: which of two heads works at which step."""

from jaxdet.configs.base import htc, r3_cnn
from jaxdet.configs.tables.rows import HTC, R3_DEEPER, Row, by_name

FOUR = (1.0, 0.75, 0.5, 0.4)  # the weights of four steps; Tables 6 and 7 have others


def make_row(alternation: str, box_ap: float, mask_ap: float, note: str = "") -> Row:
    weights = FOUR if len(alternation) == 4 else None
    experiment = r3_cnn(alternation, weights=weights)
    return Row(f"R3-CNN, {alternation}", experiment, box_ap, mask_ap, params=R3_DEEPER, note=note)


ROWS = {
    "row_1": Row("HTC (abc)", htc(), 41.7, 36.9, params=HTC),
    "row_2": make_row("ab", 40.9, 36.5),
    "row_3": make_row("abb", 41.8, 37.2),
    "row_4": make_row("aab", 41.8, 37.5),
    "row_5": make_row(
        "aba", 41.5, 37.2, "the authors' code decodes the last step's boxes with b's scale; here with a's, its own"
    ),
    "row_6": make_row("aabb", 42.1, 37.7),
    "row_7": make_row("abab", 41.9, 37.6),
    "row_8": make_row("aabbb", 41.8, 37.5, "the authors' config has half as many images a step"),
}

get_config = by_name(ROWS)
