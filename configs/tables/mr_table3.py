"""MR R-CNN (Ding et al. 2019), Table 3: the refining step (RM) without and with Shape-aware RoIAlign (SARA), COCO val.

Each row is trained so.
"""

from jaxdet.configs.tables.mr_table1 import ROWS as TABLE_1
from jaxdet.configs.tables.rows import by_name, mr_rows

ROWS = {
    **{name: row for name, row in TABLE_1.items() if name.startswith("mask_")},
    **mr_rows("RM", "rm", {"r50": (38.6, 35.0), "r101": (40.5, 36.6), "x101": (42.7, 38.3)}, guided=False),
    **mr_rows("RM + SARA", "rm_sara", {"r50": (39.5, 35.4), "r101": (41.4, 37.1), "x101": (43.6, 38.8)}),
}

get_config = by_name(ROWS)
