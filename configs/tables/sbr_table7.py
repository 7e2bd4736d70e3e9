"""SBR-CNN (Rossi et al. 2022), Table 7: a mask IoU branch, of fully connected layers or of convolutions (L2C).

The parameters printed in rows 3, 4, 6 and 7 are not those of the models in the authors' code, but of models with the
box head of Table 6 row 5.  Rows ``..._square`` are these; nobody has published their AP.
"""

from jaxdet.configs.base import Trunk, fcc, htc, r3_cnn
from jaxdet.configs.tables.rows import HTC, R3_ADVANCED, Row, by_name
from jaxdet.nn.heads.trunk import FC2

SCORES: dict[str, Trunk] = {
    "fully connected": FC2,
    "L2C 7x7": fcc(),
    "L2C 7x3": fcc("7x3"),
    "L2C 7x7, NLb": fcc(before=True),
    "L2C 7x7, NLb, NLa": fcc(before=True, after=True),
}


def of_code(score: str, box_ap: float, mask_ap: float, printed: str, params: tuple[int, int]) -> Row:
    """One head, whose first convolution of each pair lowers the channels."""
    experiment = r3_cnn(trunk=fcc("7x3", "first", before=True), score=SCORES[score])
    note = "the printed parameters are those of the row ..._square"
    return Row(f"R3-CNN, L2C 7x3, NLb; mask IoU: {score}", experiment, box_ap, mask_ap, printed, params, note=note)


def as_counted(score: str, printed: str, params: tuple[int, int]) -> Row:
    """One head: the model whose parameters the paper prints in the row of ``score``."""
    experiment = r3_cnn(trunk=fcc(before=True), score=SCORES[score])
    return Row(f"R3-CNN, L2C 7x7, NLb; mask IoU: {score}", experiment, None, None, printed, params)


def two_heads(score: str, box_ap: float, mask_ap: float, printed: str, params: tuple[int, int]) -> Row:
    experiment = r3_cnn("aabb", trunk=fcc(before=True), score=SCORES[score])
    return Row(f"R3-CNN, aabb, L2C 7x7, NLb; mask IoU: {score}", experiment, box_ap, mask_ap, printed, params)


ROWS = {
    "row_1": Row("HTC", htc(), 41.7, 36.9, "77.2M", HTC),
    "row_2": Row(
        "R3-CNN, L2C 7x3, NLb",
        r3_cnn(trunk=fcc("7x3", "first", before=True)),
        41.7,
        37.6,
        "37.9M",
        (38_135_860, 37_910_516),
        note="Table 6 row 6, but with the mask loop in training",
    ),
    "row_3": of_code("fully connected", 41.6, 38.5, "54.9M", (54_476_164, 54_250_820)),
    "row_3_square": as_counted("fully connected", "54.9M", (55_192_772, 54_967_428)),
    "row_4": of_code("L2C 7x7", 41.7, 38.4, "43.2M", (42_756_676, 42_531_332)),
    "row_4_square": as_counted("L2C 7x7", "43.2M", (43_473_284, 43_247_940)),
    "row_5": Row(
        "R3-CNN, L2C 7x3, NLb; mask IoU: L2C 7x3",
        r3_cnn(trunk=fcc("7x3", before=True), score=SCORES["L2C 7x3"]),
        41.8,
        38.4,
        "44.3M",
        (44_620_932, 44_395_588),
        note="the last of each pair of convolutions lowers the channels, not the first as in the rows beside it",
    ),
    "row_6": of_code("L2C 7x7, NLb", 41.4, 38.3, "49.6M", (49_179_844, 48_954_500)),
    "row_6_square": as_counted("L2C 7x7, NLb", "49.6M", (49_896_452, 49_671_108)),
    "row_7": of_code("L2C 7x7, NLb, NLa", 41.6, 38.3, "50.0M", (49_581_412, 49_356_068)),
    "row_7_square": as_counted("L2C 7x7, NLb, NLa", "50.0M", R3_ADVANCED),
    "row_8": Row(
        "R3-CNN, aabb, L2C 7x7, NLb",
        r3_cnn("aabb", trunk=fcc(before=True)),
        42.9,
        38.1,
        params=(50_258_585, 50_033_241),
    ),
    "row_9": two_heads("fully connected", 42.7, 38.6, "66.3M", (66_598_889, 66_373_545)),
    "row_10": two_heads("L2C 7x7", 42.7, 38.7, "54.6M", (54_879_401, 54_654_057)),
    "row_11": two_heads("L2C 7x7, NLb", 42.8, 38.7, "61.0M", (61_302_569, 61_077_225)),
    "row_12": two_heads("L2C 7x7, NLb, NLa", 42.7, 38.6, "61.4M", (61_704_137, 61_478_793)),
}

get_config = by_name(ROWS)
