"""MR R-CNN (Ding et al. 2019), Table 2: box and mask AP of the models of Table 1 on COCO test-dev.

The paper does not say which deformable convolutions it has; these are the first version, in C3 to C5.
"""

from jaxdet.configs.tables.rows import by_name, mr_baselines, mr_rows

ROWS = {
    **mr_baselines({"r50": (38.0, 34.6), "r101": (40.2, 36.2), "x101": (42.6, 38.3)}),
    **mr_rows(
        "MR R-CNN", "mr", {"r50": (39.9, 35.6), "r101": (41.5, 37.2), "x101": (44.1, 39.3), "r101_dcn": (44.1, 39.7)}
    ),
}

get_config = by_name(ROWS)
