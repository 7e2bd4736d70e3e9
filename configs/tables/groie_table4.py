"""GRoIE (Rossi et al. 2020), Table IV: what comes behind the sum.  Faster R-CNN.

Published AP is that of the list beside the authors' configs; of the paper's table only AP50 and on were legible here.
"""

import flax.linen as nn

from jaxdet.configs.tables.rows import GROIE_FASTER, Row, by_name, groie_row
from jaxdet.nn.blocks.attention import Attention
from jaxdet.nn.blocks.context import NonLocal
from jaxdet.nn.extractors.groie import ConvReLU, GRoIE


def make_row(name: str, post: nn.Module, box_ap: float, params: tuple[int, int]) -> Row:
    return groie_row(f", post: {name}", GRoIE(post=post, relu=True), box_ap, params)


ROWS = {
    "baseline": GROIE_FASTER,
    "conv_1x1": make_row("1x1", ConvReLU(1), 36.0, (41_822_948, 41_597_604)),
    "conv_3x3": make_row("3x3", ConvReLU(3), 36.6, (42_347_236, 42_121_892)),
    "conv_5x5": make_row("5x5", ConvReLU(5), 36.6, (43_395_812, 43_170_468)),
    "non_local": make_row("non-local", NonLocal(1), 36.7, (41_888_868, 41_663_524)),
    "attention": make_row("attention", Attention(), 36.8, (42_015_461, 41_790_117)),
}

get_config = by_name(ROWS)
