"""GRoIE (Rossi et al. 2020), Table I: which level of the pyramid a box reads.  Faster R-CNN."""

from jaxdet.configs.tables.rows import GROIE_FASTER, by_name, groie_row
from jaxdet.nn.extractors.groie import GRoIE

ROWS = {
    "baseline": GROIE_FASTER,
    "random": groie_row(
        ", random level",
        GRoIE(combine="random"),
        34.8,
        note="a box's level follows from its coordinates: the same whenever it is met",
    ),
    "sum": groie_row(", sum of levels", GRoIE(relu=True), 36.8),
}

get_config = by_name(ROWS)
