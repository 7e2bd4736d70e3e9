"""MR R-CNN (Ding et al. 2019), Table 4: what refined scores (CLS) and refined boxes (REG) are worth, on COCO val.

Read as switches at test on one trained model, since the row of Table 5 without refined scores has the numbers of REG:

    jaxdet eval runs/mr_rcnn --config mr_table4:cls_r50

A model that is trained by such a row does not train what the row leaves out.
"""

from jaxdet.configs.tables.rows import by_name, mr_rows

ROWS = {
    **mr_rows("CLS", "cls", {"r50": (38.3, 35.0), "r101": (40.4, 36.8), "x101": (42.7, 38.6)}, boxes="base"),
    **mr_rows("REG", "reg", {"r50": (39.1, 35.1), "r101": (41.2, 37.0), "x101": (43.2, 38.5)}, alpha=0.0),
    **mr_rows("CLS + REG", "cls_reg", {"r50": (39.5, 35.4), "r101": (41.4, 37.1), "x101": (43.6, 38.8)}),
}

get_config = by_name(ROWS)
