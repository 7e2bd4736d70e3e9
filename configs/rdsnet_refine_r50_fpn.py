"""RDSNet (Wang et al. 2020) with ResNet-50 and FPN, 1x schedule on COCO, and the masks refine the boxes.

The authors report box AP 37.8 and mask AP 32.1 on val2017 for these settings (README of their code, wangsr126/RDSNet,
rdsnet_refine_r50_fpn_1x); nobody has trained this one on COCO yet.

The refinement has 10 parameters, which start at the published values.  To train them on a model that is trained:

    jaxdet train --config rdsnet_refine_r50_fpn --workdir runs/refine \
        run.init_from=runs/rdsnet "run.train_only=^params/boundaries/" \
        optimizer.schedule.unit=steps optimizer.schedule.length=1000 optimizer.schedule.drops= \
        optimizer.lr=0.01 optimizer.weight_decay=0
"""

from jaxdet.configs.base import rdsnet
from jaxdet.experiment import Experiment


def get_config() -> Experiment:
    return rdsnet(depth=50, boxes_from="mbrm")
