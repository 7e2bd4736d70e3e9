"""Settings that foreign weights ask for."""

import logging

import pytest

from jaxdet.checkpoints.names.table import Imported
from jaxdet.checkpoints.names.torchvision import RETINANET_SETTINGS, SETTINGS
from jaxdet.config import load_config, override
from jaxdet.trained import check_settings


def test_a_model_with_other_settings_than_its_weights_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "jaxdet")
    model = load_config("configs/mask_rcnn_r50_fpn.py").model
    foreign = Imported({"params": {}}, settings=SETTINGS)

    check_settings(model, Imported({"params": {}}), "file")
    check_settings(override(model, SETTINGS), foreign, "file")
    assert not caplog.records

    check_settings(model, foreign, "file")
    assert "'*.aligned=false'" in caplog.text


def test_weights_of_another_network_are_refused() -> None:
    model = load_config("configs/mask_rcnn_r50_fpn.py").model
    required = ("*normalization.std=1,1,1",)
    check_settings(override(model, required), Imported({"params": {}}, required=required), "file")
    for missing in (required, ("*backbone.no_such_setting=1",)):
        with pytest.raises(
            ValueError,
            match=rf"file: these weights are of another network than the model, which needs '\{missing[0][:9]}",
        ):
            check_settings(model, Imported({"params": {}}, required=missing), "file")


def test_settings_of_another_family_are_left_to_the_merge(caplog: pytest.LogCaptureFixture) -> None:
    """A Mask R-CNN takes a RetinaNet's backbone by patterns; it has no settings for the rest to ask for."""
    caplog.set_level(logging.WARNING, "jaxdet")
    model = load_config("configs/mask_rcnn_r50_fpn.py").model
    check_settings(model, Imported({"params": {}}, settings=RETINANET_SETTINGS), "file")
    assert not caplog.records
