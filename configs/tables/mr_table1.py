"""MR R-CNN (Ding et al. 2019), Table 1: Mask R-CNN and what a refining step adds to it, on COCO val.

The paper's third backbone is ResNeXt-101, 32x8d (Mask R-CNN 42.2 and 37.8, MR R-CNN 43.6 and 38.8).
"""

from configs.tables.rows import by_name, mr_baselines, mr_rows

ROWS = {
    **mr_baselines({"r50": (37.8, 34.2), "r101": (40.1, 36.1)}),
    **mr_rows("MR R-CNN", "mr", {"r50": (39.5, 35.4), "r101": (41.4, 37.1)}),
}

get_config = by_name(ROWS)
