"""SBR-CNN (Rossi et al. 2022) with ResNet-50 and FPN, 1x schedule on COCO.

R3-CNN's loop, convolutions in place of fully connected layers, a mask IoU branch, and GRoIE in front of box and mask
head.  Published: box AP 42.0, mask AP 39.2 (Table 11 row 4); nobody has trained this one on COCO yet.
"""

from jaxdet.configs.base import best_groie, fcc, r3_cnn
from jaxdet.experiment import Experiment


def get_config() -> Experiment:
    return r3_cnn(
        "aaa",
        # The authors' code lowers the channels in the first of each pair, other than the paper's Table 1.
        trunk=fcc("7x3", "first", before=True),
        score=fcc("7x7"),
        extractor=best_groie,
    )
