"""MR R-CNN (Ding et al. 2019) with ResNet-50 and FPN: Mask R-CNN, 1x schedule, and 9,000 steps with a refining step.

The paper reports box AP 39.5 and mask AP 35.4 on val2017 (Table 1; its Mask R-CNN has 37.8 and 34.2); nobody has
trained this one on COCO yet.

Both phases, the first into runs/mr_rcnn/before:

    jaxdet train --config mr_rcnn_r50_fpn --workdir runs/mr_rcnn before.init_from=weights/resnet50.pth

The second alone, from a Mask R-CNN that is trained already, of jaxdet, mmdetection or torchvision:

    jaxdet train --config mr_rcnn_r50_fpn --workdir runs/mr_rcnn run.init_from=runs/mask_rcnn
"""

from jaxdet.configs.base import mask_rcnn
from jaxdet.configs.refined import refined
from jaxdet.experiment import Experiment


def get_config() -> Experiment:
    return refined(mask_rcnn)
