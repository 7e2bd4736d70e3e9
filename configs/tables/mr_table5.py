"""MR R-CNN (Ding et al. 2019), Table 5: the weight alpha of the refined scores, at test on one trained model, COCO val.

jaxdet eval runs/mr_rcnn --config mr_table5:alpha_02
"""

from jaxdet.configs.tables.rows import Row, by_name, mr_rcnn

AP = {0.0: (39.1, 35.1), 0.1: (39.3, 35.2), 0.2: (39.3, 35.2), 0.5: (39.5, 35.4), 1.0: (39.5, 35.4)} | {
    2.0: (39.5, 35.4),
    5.0: (39.4, 35.3),
    10.0: (39.2, 35.2),
}

ROWS = {
    f"alpha_{alpha:g}".replace(".", ""): Row(f"MR R-CNN, alpha {alpha:g}", mr_rcnn("r50", alpha=alpha), *ap)
    for alpha, ap in AP.items()
}

get_config = by_name(ROWS)
