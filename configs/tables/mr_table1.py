"""MR R-CNN (Ding et al. 2019), Table 1: Mask R-CNN and what a refining step adds to it, on COCO val."""

from jaxdet.configs.tables.rows import by_name, mr_baselines, mr_rows

ROWS = {
    **mr_baselines({"r50": (37.8, 34.2), "r101": (40.1, 36.1), "x101": (42.2, 37.8)}),
    **mr_rows("MR R-CNN", "mr", {"r50": (39.5, 35.4), "r101": (41.4, 37.1), "x101": (43.6, 38.8)}),
}

get_config = by_name(ROWS)
