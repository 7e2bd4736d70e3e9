"""Hybrid Task Cascade with GRoIE as first published (Rossi et al. 2020), ResNet-50 and FPN, 1x schedule on COCO.

Every head reads all levels by an extractor of its own, without the semantic branch.  It is among the configs of GRoIE's
authors and in no table of the papers: no AP is published, and nobody has trained this one on COCO yet.
"""

from jaxdet.configs.base import first_groie, htc
from jaxdet.experiment import Experiment


def get_config() -> Experiment:
    return htc(first_groie)
