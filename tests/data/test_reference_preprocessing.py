"""Against golden numbers of the reference implementation's resize, normalisation and mask resize."""

import numpy as np
import pytest

from jaxdet.data.masks import resize_mask
from jaxdet.data.pipeline.transforms import View, resize_image, view_of
from jaxdet.data.settings import Data

MEAN, STD = np.float32([123.675, 116.28, 103.53]), np.float32([58.395, 57.12, 57.375])


@pytest.fixture(scope="module")
def golden(shared):
    return np.load(shared / "reference" / "golden" / "golden_ops.npz")


@pytest.fixture(scope="module", params=[(120, 80), (60, 90)], ids=str)
def limits(request):
    return request.param


def test_resize(golden, limits):
    bgr, name = golden["pre/img_bgr_uint8"], "{}x{}".format(*limits)
    hw = view_of(bgr.shape[:2], Data(short_side=min(limits), long_side=max(limits))).hw
    expected = golden[f"pre/rescale_{name}"]
    assert hw == expected.shape[:2]
    np.testing.assert_array_equal(resize_image(np.ascontiguousarray(bgr[..., ::-1]), hw)[..., ::-1], expected)


def test_normalised_and_padded(golden, limits):
    """The device normalises and zeroes what lies beyond the image; here the same is done in NumPy."""
    bgr, expected = golden["pre/img_bgr_uint8"], golden["pre/norm_pad_{}x{}".format(*limits)]
    hw = view_of(bgr.shape[:2], Data(short_side=min(limits), long_side=max(limits))).hw
    view = View(bgr.shape[:2], hw, expected.shape[:2])
    image = (view.image(np.ascontiguousarray(bgr[..., ::-1])).astype(np.float32) - MEAN) / STD
    image[hw[0] :] = 0
    image[:, hw[1] :] = 0
    np.testing.assert_allclose(image, expected, atol=1e-6)


def test_masks_are_resized_to_the_same_pixels(golden, shared, limits):
    mask = np.load(shared / "reference" / "golden" / "inputs.npz")["gt_masks"][0][:37, 20:73]
    expected = golden["pre/maskrescale_{}x{}".format(*limits)]
    np.testing.assert_array_equal(resize_mask(np.ascontiguousarray(mask, np.uint8), expected.shape), expected)
