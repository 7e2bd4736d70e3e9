"""GRoIE (Rossi et al. 2020), Table III: what comes before the sum.  Faster R-CNN."""

import flax.linen as nn

from configs.tables.parts import BACKGROUND_BOXES, Row, by_name, first_generation, two_samples
from jaxdet.nn.attention import Attention
from jaxdet.nn.context import NonLocal
from jaxdet.nn.groie import ConvReLU, GRoIE


def make_row(name: str, pre: nn.Module, box_ap: float, params: tuple[int, int]) -> Row:
    experiment = first_generation(GRoIE(pre=pre, relu=True))
    return Row(f"Faster R-CNN, pre: {name}", experiment, box_ap, params=params, background=BACKGROUND_BOXES)


ROWS = {
    "baseline": Row(
        "Faster R-CNN",
        first_generation(two_samples(7)),
        36.5,
        params=(41_757_156, 41_531_812),
        background=BACKGROUND_BOXES,
    ),
    "conv_1x1": make_row("1x1", ConvReLU(1), 36.2, (41_822_948, 41_597_604)),
    "conv_3x3": make_row("3x3", ConvReLU(3), 37.0, (42_347_236, 42_121_892)),
    "conv_5x5": make_row("5x5", ConvReLU(5), 37.2, (43_395_812, 43_170_468)),
    "non_local": make_row("non-local", NonLocal(1), 36.5, (41_888_868, 41_663_524)),
    "attention": make_row("attention", Attention(), 36.4, (42_015_461, 41_790_117)),
}

get_config = by_name(ROWS)
