import pytest

from jaxdet.data import Data, Scenes


@pytest.mark.parametrize(
    "values",
    [
        {"short_side": 0},
        {"long_side": 10, "short_side": 20},
        {"pad_multiple": 0},
        {"canvas_ratios": (1.36, 0.75)},
        {"canvas_ratios": (1.36,), "keep_ratio": False},
        {"batch_size": -1},
        {"max_boxes": 0},
        {"mask_size": 2},
        {"flip_probability": 1.5},
        {"workers": -1},
        {"prefetch": 0},
    ],
)
def test_data_that_cannot_be_is_refused_by_name(values):
    with pytest.raises(ValueError, match=next(iter(values))):
        Data(**values)


@pytest.mark.parametrize(
    "values",
    [
        {"split": "test"},
        {"count": 0},
        {"size": 8},
        {"aspects": ()},
        {"aspects": (9.0,)},
        {"seed": -1},
        {"huddled": 1.5},
    ],
)
def test_scenes_that_cannot_be_are_refused_by_name(values):
    with pytest.raises(ValueError, match=next(iter(values))):
        Scenes(**values)
