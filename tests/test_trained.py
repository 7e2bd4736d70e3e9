"""Settings that foreign weights ask for."""

import logging

import pytest

from jaxdet.checkpoints.names.table import Imported
from jaxdet.checkpoints.names.torchvision import RETINANET_SETTINGS, SETTINGS
from jaxdet.config import load_config, override
from jaxdet.trained import warn_of_settings


def test_a_model_with_other_settings_than_its_weights_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "jaxdet")
    model = load_config("configs/mask_rcnn_r50_fpn.py").model
    foreign = Imported({"params": {}}, settings=SETTINGS)

    warn_of_settings(model, Imported({"params": {}}))
    warn_of_settings(override(model, SETTINGS), foreign)
    assert not caplog.records

    warn_of_settings(model, foreign)
    assert "'*.aligned=false'" in caplog.text


def test_settings_of_another_family_are_left_to_the_merge(caplog: pytest.LogCaptureFixture) -> None:
    """A Mask R-CNN takes a RetinaNet's backbone by patterns; it has no settings for the rest to ask for."""
    caplog.set_level(logging.WARNING, "jaxdet")
    model = load_config("configs/mask_rcnn_r50_fpn.py").model
    warn_of_settings(model, Imported({"params": {}}, settings=RETINANET_SETTINGS))
    assert not caplog.records
