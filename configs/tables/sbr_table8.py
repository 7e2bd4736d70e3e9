"""SBR-CNN (Rossi et al. 2022), Table 8: what comes before the sum of GRoIE.  Faster R-CNN."""

import flax.linen as nn

from jaxdet.configs.base import faster_rcnn
from jaxdet.configs.tables.rows import FASTER_RCNN, Row, by_name
from jaxdet.nn.blocks.context import NonLocal
from jaxdet.nn.extractors.groie import ConvReLU, GRoIE, RectangularReLU


def make_row(name: str, pre: nn.Module, box_ap: float, params: tuple[int, int]) -> Row:
    experiment = faster_rcnn(lambda size: GRoIE(size, pre=pre))
    return Row(f"Faster R-CNN, pre: {name}", experiment, box_ap, params=params)


ROWS = {
    "baseline": Row("Faster R-CNN", faster_rcnn(), 37.4, params=FASTER_RCNN),
    "conv_3x3": make_row("3x3", ConvReLU(3), 38.1, (42_343_136, 42_117_792)),
    "conv_5x5": make_row("5x5", ConvReLU(5), 38.2, (43_391_712, 43_166_368)),
    "conv_7x7": make_row("7x7", ConvReLU(7), 38.3, (44_964_576, 44_739_232)),
    "conv_7x3": make_row("7x3 -> 3x7", RectangularReLU(), 37.9, (44_506_080, 44_280_736)),
    "non_local_1x1": make_row("non-local 1x1", NonLocal(1), 37.7, (41_884_768, 41_659_424)),
    "non_local_7x7": make_row("non-local 7x7", NonLocal(7), 38.4, (48_176_224, 47_950_880)),
}

get_config = by_name(ROWS)
