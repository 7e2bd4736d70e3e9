"""GRoIE (Rossi et al. 2020), Table V: models without and with it."""

import dataclasses

from jaxdet.configs.base import Extractor, first_groie
from jaxdet.configs.grid import grid_rcnn
from jaxdet.configs.tables.rows import (
    BACKGROUND_BOXES,
    BACKGROUND_MASKS,
    GROIE_FASTER,
    GROIE_MASK,
    Row,
    by_name,
    first_generation,
    gcnet,
    groie_row,
    two_samples,
)
from jaxdet.nn.blocks.attention import Attention
from jaxdet.nn.extractors.groie import ConvReLU, GRoIE


def grid_row(what: str, extractor: Extractor, box_ap: float, params: tuple[int, int]) -> Row:
    """A row of Grid R-CNN, trained as the other rows of this table."""
    experiment = grid_rcnn(extractor)
    settings = first_generation(two_samples(7))
    data = dataclasses.replace(experiment.data, batch_size=settings.data.batch_size)
    experiment = dataclasses.replace(experiment, data=data, optimizer=settings.optimizer)
    return Row(f"Grid R-CNN{what}", experiment, box_ap, params=params)


ROWS = {
    "faster": GROIE_FASTER,
    "faster_groie": groie_row(" + GRoIE", first_groie(7), 37.5, (43_654_117, 43_428_773)),
    "grid": grid_row("", two_samples, 39.1, (64_548_201, 64_322_857)),
    "grid_groie": grid_row(" + GRoIE", first_groie, 39.8, (68_342_123, 68_116_779)),
    "mask": GROIE_MASK,
    "mask_groie": Row(
        "Mask R-CNN + GRoIE",
        first_generation(first_groie(7), first_groie(14)),
        38.4,
        35.8,
        params=(48_194_615, 47_969_271),
        background=BACKGROUND_BOXES + BACKGROUND_MASKS,
    ),
    "gcnet": Row("GC-Net", gcnet(first_generation(two_samples(7), two_samples(14))), 39.5, 35.9),
    "gcnet_groie": Row(
        "GC-Net + GRoIE",
        gcnet(first_generation(GRoIE(7, pre=ConvReLU(5), post=Attention(heads=8)), first_groie(14))),
        40.3,
        37.2,
        params=(58_199_620, 57_974_276),
        background=BACKGROUND_BOXES + BACKGROUND_MASKS,
        note="in the authors' config the attention of the box extractor has eight heads, elsewhere six",
    ),
}

get_config = by_name(ROWS)
