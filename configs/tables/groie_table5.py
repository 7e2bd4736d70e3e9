"""GRoIE (Rossi et al. 2020), Table V: models without and with it.

Left out are the rows of Grid R-CNN and GC-Net, whose parts are not in jaxdet yet.
"""

from configs.tables.parts import (
    BACKGROUND_BOXES,
    BACKGROUND_MASKS,
    Row,
    by_name,
    first_generation,
    first_groie,
    two_samples,
)

ROWS = {
    "faster": Row(
        "Faster R-CNN",
        first_generation(two_samples(7)),
        36.5,
        params=(41_757_156, 41_531_812),
        background=BACKGROUND_BOXES,
    ),
    "faster_groie": Row(
        "Faster R-CNN + GRoIE",
        first_generation(first_groie(7)),
        37.5,
        params=(43_654_117, 43_428_773),
        background=BACKGROUND_BOXES,
    ),
    "mask": Row(
        "Mask R-CNN",
        first_generation(two_samples(7), two_samples(14)),
        37.3,
        34.1,
        params=(44_400_693, 44_175_349),
        background=BACKGROUND_BOXES + BACKGROUND_MASKS,
    ),
    "mask_groie": Row(
        "Mask R-CNN + GRoIE",
        first_generation(first_groie(7), first_groie(14)),
        38.4,
        35.8,
        params=(48_194_615, 47_969_271),
        background=BACKGROUND_BOXES + BACKGROUND_MASKS,
    ),
}

get_config = by_name(ROWS)
