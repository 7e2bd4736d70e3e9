"""GRoIE (Rossi et al. 2020), Table V: models without and with it.

Left out are the rows of Grid R-CNN and GC-Net, whose parts are not in jaxdet yet.
"""

from configs.base import first_groie
from configs.tables.rows import (
    BACKGROUND_BOXES,
    BACKGROUND_MASKS,
    GROIE_FASTER,
    GROIE_MASK,
    Row,
    by_name,
    first_generation,
    groie_row,
)

ROWS = {
    "faster": GROIE_FASTER,
    "faster_groie": groie_row(" + GRoIE", first_groie(7), 37.5, (43_654_117, 43_428_773)),
    "mask": GROIE_MASK,
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
