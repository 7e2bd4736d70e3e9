"""Mask R-CNN with ConvNeXt-T (Liu et al. 2022) and FPN, 1x schedule on COCO, by AdamW.

``run.init_from`` takes torchvision's convnext_tiny.  Rate and decay are those of the authors' detectors, whose schedule
is three times as long; nobody has trained this one on COCO yet.
"""

import dataclasses
from typing import Any

from jaxdet.configs.base import mask_rcnn
from jaxdet.experiment import Experiment, Optimizer
from jaxdet.nn.backbones.convnext import ConvNeXt


def get_config() -> Experiment:
    experiment = mask_rcnn()
    model: Any = experiment.model
    optimizer = Optimizer(rule="adamw", lr=1e-4, weight_decay=0.05, schedule=experiment.optimizer.schedule)
    return dataclasses.replace(experiment, model=model.clone(backbone=ConvNeXt()), optimizer=optimizer)
