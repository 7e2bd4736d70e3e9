"""RDSNet (Wang et al. 2020), Figure 5: what the width of the prior and the reach of the kernel do to refined boxes.

The figure shows curves and no numbers.  The refinement of each reach, but for that of 4, is trained anew, as the config
rdsnet_refine_r50_fpn says.  ResNet-101, images of 600 pixels.
"""

from jaxdet.configs.base import rdsnet
from jaxdet.configs.tables.rds_table2 import small
from jaxdet.configs.tables.rows import Row, by_name

ROWS = {
    **{
        f"gamma_{gamma:g}".replace("0.", ""): Row(
            f"RDSNet, gamma {gamma:g}", small(rdsnet(101, boxes_from="mbrm", gamma=gamma)), None
        )
        for gamma in (0.01, 0.025, 0.05, 0.1, 0.2)
    },
    **{
        f"reach_{reach}": Row(f"RDSNet, reach {reach}", small(rdsnet(101, boxes_from="mbrm", reach=reach)), None)
        for reach in (1, 2, 3, 5, 6)
    },
}

get_config = by_name(ROWS)
