"""MR R-CNN (Ding et al. 2019), Table 3: the refining step (RM) without and with Shape-aware RoIAlign (SARA), COCO val.

Each row is trained so.  With ResNeXt-101, 32x8d: Mask R-CNN 42.2 and 37.8, RM 42.7 and 38.3, both 43.6 and 38.8.
"""

from configs.tables.mr_table1 import ROWS as TABLE_1
from configs.tables.rows import by_name, mr_rows

ROWS = {
    **{name: row for name, row in TABLE_1.items() if name.startswith("mask_")},
    **mr_rows("RM", "rm", {"r50": (38.6, 35.0), "r101": (40.5, 36.6)}, guided=False),
    **mr_rows("RM + SARA", "rm_sara", {"r50": (39.5, 35.4), "r101": (41.4, 37.1)}),
}

get_config = by_name(ROWS)
