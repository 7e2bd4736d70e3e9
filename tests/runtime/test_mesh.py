"""Devices that are there, and those that are not."""

from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest

from jaxdet.runtime.mesh import all_devices, data_mesh, device_kinds


@pytest.mark.parametrize(
    ("raised", "said"),
    [
        (AssertionError(), r"but jax finds none\. Leave the variable out"),
        (RuntimeError("no libtpu"), "but jax finds none: no libtpu"),
    ],
)
def test_devices_that_are_not_there(raised: Exception, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What jax raises for a GPU and for a TPU that it does not find."""

    def none() -> None:
        raise raised

    monkeypatch.setattr(jax, "devices", none)
    for call in (all_devices, data_mesh):
        with pytest.raises(ValueError, match=said):
            call()


def test_the_kind_of_the_devices_is_named() -> None:
    assert device_kinds(data_mesh(jax.devices("cpu")[:1])) == "1 device (cpu)"

    def mesh(platform: str, *names: str) -> Any:
        return SimpleNamespace(devices=np.array([SimpleNamespace(platform=platform, device_kind=n) for n in names]))

    assert device_kinds(mesh("gpu", "NVIDIA H200", "NVIDIA H200")) == "2 devices (gpu: NVIDIA H200)"
    assert device_kinds(mesh("tpu", "TPU v4")) == "1 device (TPU v4)"
