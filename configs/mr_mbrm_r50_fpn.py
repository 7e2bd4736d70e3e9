"""MR R-CNN (Ding et al. 2019), whose masks then move the boxes as in RDSNet (Wang et al. 2020), ResNet-50 and FPN.

A mixture; nobody has trained it.  The 10 parameters of the boundary refinement start at the published values.
Phases and commands are as in configs/mr_rcnn_r50_fpn.py.
"""

from jaxdet.configs.base import mask_rcnn
from jaxdet.configs.refined import refined
from jaxdet.experiment import Experiment
from jaxdet.models.parts.boundaries import BoundaryRefinement


def get_config() -> Experiment:
    return refined(mask_rcnn, behind=(BoundaryRefinement(),))
