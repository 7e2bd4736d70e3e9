"""GRoIE (Rossi et al. 2020), Table I: which level of the pyramid a box reads.  Faster R-CNN."""

from configs.tables.parts import BACKGROUND_BOXES, Row, by_name, first_generation, two_samples
from jaxdet.nn.groie import GRoIE

PARAMS = (41_757_156, 41_531_812)  # no row has parameters of its own

ROWS = {
    "baseline": Row("Faster R-CNN", first_generation(two_samples(7)), 36.5, params=PARAMS, background=BACKGROUND_BOXES),
    "random": Row(
        "Faster R-CNN, random level",
        first_generation(GRoIE(combine="random", relu=True)),
        34.8,
        params=PARAMS,
        background=BACKGROUND_BOXES,
        note="a box's level follows from its coordinates: the same whenever it is met",
    ),
    "sum": Row(
        "Faster R-CNN, sum of levels",
        first_generation(GRoIE(relu=True)),
        36.8,
        params=PARAMS,
        background=BACKGROUND_BOXES,
    ),
}

get_config = by_name(ROWS)
