"""GRoIE (Rossi et al. 2020), Table II: how levels are combined.  Faster R-CNN."""

from jaxdet.configs.tables.rows import GROIE_FASTER, by_name, groie_row
from jaxdet.nn.extractors.groie import ConvReLU, GRoIE

ROWS = {
    "baseline": GROIE_FASTER,
    "sum": groie_row(", sum of levels", GRoIE(relu=True), 36.8),
    "sum_plus": groie_row(
        ", sum of levels, then 1x1 convolution", GRoIE(post=ConvReLU(1), relu=True), 36.0, (41_822_948, 41_597_604)
    ),
    "concat": groie_row(
        ", all levels side by side, then 1x1 convolution",
        GRoIE(combine="concat", relu=True),
        36.1,
        (42_019_556, 41_794_212),
    ),
}

get_config = by_name(ROWS)
