"""RDSNet (Wang et al. 2020), Table 3: mask AP of RDSNet_s on COCO val, with and without each of its changes.

Boxes that cut masks are expanded in training (TE) and in inference (IE); OHEM counts the hardest background pixels
alone.  Tick marks of the table are read together with section 4.2 of the paper, which compares rows 2, 3, 5 and 7.
"""

from jaxdet.configs.tables.rows import Row, by_name, rdsnet_s


def row(what: str, mask_ap: float, *, train: float = 1.0, test: float = 1.0, ohem: bool = False) -> Row:
    model = rdsnet_s(expand_train=train, expand_test=test, hard_background=ohem)
    return Row(f"RDSNet_s, {what}", model, None, mask_ap)


ROWS = {
    "row_1": Row("RDSNet_s, linear combinations", rdsnet_s("linear"), None, 29.9),
    "row_2": row("correlation", 31.0),
    "row_3": row("correlation, IE", 30.0, test=1.2),
    "row_4": row("correlation, TE", 30.7, train=1.5),
    "row_5": row("correlation, TE, IE", 30.8, train=1.5, test=1.2),
    "row_6": row("correlation, TE, OHEM", 31.6, train=1.5, ohem=True),
    "row_7": row("correlation, TE, IE, OHEM", 31.8, train=1.5, test=1.2, ohem=True),
}

get_config = by_name(ROWS)
