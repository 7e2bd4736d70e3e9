"""MR R-CNN (Ding et al. 2019), Table 2: box and mask AP of the models of Table 1 on COCO test-dev.

With ResNeXt-101, 32x8d, Mask R-CNN has 42.6 and 38.3, MR R-CNN 44.1 and 39.3; MR R-CNN with ResNet-101 and deformable
convolutions 44.1 and 39.7.
"""

from configs.tables.rows import by_name, mr_baselines, mr_rows

ROWS = {
    **mr_baselines({"r50": (38.0, 34.6), "r101": (40.2, 36.2)}),
    **mr_rows("MR R-CNN", "mr", {"r50": (39.9, 35.6), "r101": (41.5, 37.2)}),
}

get_config = by_name(ROWS)
