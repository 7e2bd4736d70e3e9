"""GRoIE (Rossi et al. 2020), Table II: how levels are combined.  Faster R-CNN."""

from configs.tables.parts import BACKGROUND_BOXES, Row, by_name, first_generation, two_samples
from jaxdet.nn.groie import ConvReLU, GRoIE

ROWS = {
    "baseline": Row(
        "Faster R-CNN",
        first_generation(two_samples(7)),
        36.5,
        params=(41_757_156, 41_531_812),
        background=BACKGROUND_BOXES,
    ),
    "sum": Row(
        "Faster R-CNN, sum of levels",
        first_generation(GRoIE(relu=True)),
        36.8,
        params=(41_757_156, 41_531_812),
        background=BACKGROUND_BOXES,
    ),
    "sum_plus": Row(
        "Faster R-CNN, sum of levels, then 1x1 convolution",
        first_generation(GRoIE(post=ConvReLU(1), relu=True)),
        36.0,
        params=(41_822_948, 41_597_604),
        background=BACKGROUND_BOXES,
    ),
    "concat": Row(
        "Faster R-CNN, all levels side by side, then 1x1 convolution",
        first_generation(GRoIE(combine="concat", relu=True)),
        36.1,
        params=(42_019_556, 41_794_212),
        background=BACKGROUND_BOXES,
    ),
}

get_config = by_name(ROWS)
