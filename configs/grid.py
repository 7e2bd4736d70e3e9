"""Grid R-CNN (Lu et al. 2019), with any extractor."""

from typing import Any

from jaxdet.configs.base import Extractor, Trunk, cascade_rpn, coco, two_stage
from jaxdet.experiment import Experiment
from jaxdet.models.parts.grid import GridBoxes
from jaxdet.models.roi.heads import BoxBranch
from jaxdet.nn.extractors.single_level import SingleLevel
from jaxdet.nn.heads.box import ClassHead
from jaxdet.nn.heads.grid import GridHead
from jaxdet.nn.heads.trunk import FC2
from jaxdet.ops.suppression import NMS


def grid_rcnn(extractor: Extractor = SingleLevel, trunk: Trunk = FC2, **settings: Any) -> Experiment:
    """Grid R-CNN (Lu et al. 2019): the box head says the class alone, and a grid of points where the box is.

    Proposals are suppressed as they are, and the boxes that are left are moved to their grids.  ``settings`` are those
    of `GridBoxes`.
    """
    model = two_stage(
        [BoxBranch(extractor(7), ClassHead(trunk()))],
        rpn=cascade_rpn(),
        # Boxes that nobody has moved yet lie close to each other; the grid tells them apart no more (the reference).
        suppression=NMS(score_threshold=0.03, iou_threshold=0.3),
        parts=(GridBoxes(extractor(14), GridHead(), **settings),),
    )
    return coco(model, masks=False)
