from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxdet.data import Category, Record, load_image
from jaxdet.visualize import overlay, prediction_grid, save_predictions

# pycocotools 2.0.11 decodes with a call that NumPy 2 deprecates
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")
CATEGORIES = (Category(3, "dog"), Category(90, "cat"))
GREY = np.full((200, 240, 3), 120, np.uint8)


def thing(x: int, y: int, side: int, **more: Any) -> dict[str, Any]:
    corners = [x, y, x + side, y, x + side, y + side, x, y + side]
    return {"bbox": [x, y, side, side], "category_id": 3, "segmentation": [corners], "score": 0.9} | more


def changed(picture: np.ndarray) -> np.ndarray:
    return (picture != GREY).any(axis=-1)


def test_nothing_to_draw_leaves_the_image() -> None:
    picture = overlay(GREY, [], CATEGORIES)
    np.testing.assert_array_equal(picture, GREY)
    assert picture is not GREY
    np.testing.assert_array_equal(overlay(GREY, [thing(9, 9, 40)], CATEGORIES, score_threshold=0.95), GREY)


def test_mask_is_translucent_with_an_opaque_outline() -> None:
    picture = overlay(GREY, [thing(60, 60, 100)], CATEGORIES)
    inside, outline = picture[140, 140].astype(int), picture[110, 60].astype(int)
    np.testing.assert_allclose(inside, 0.55 * 120 + 0.45 * outline, atol=1.5)
    assert not changed(picture)[165:, :].any()
    assert not changed(picture)[:, 165:].any()


def test_box_is_drawn_on_its_first_and_last_pixels() -> None:
    marks = changed(overlay(GREY, [thing(60, 60, 100, segmentation=None)], CATEGORIES))
    assert marks[159, 60:160].all()
    assert marks[60:160, 159].all()
    assert not marks[100:150, 70:150].any()
    assert not marks[160, :].any()


def test_label_has_name_and_score() -> None:
    plain = thing(60, 60, 100, segmentation=None)
    with_label = overlay(GREY, [plain], CATEGORIES)
    other_score = overlay(GREY, [plain | {"score": 0.1}], CATEGORIES)
    other_name = overlay(GREY, [plain], (Category(3, "wolf"), Category(90, "cat")))
    for other in (other_score, other_name):
        rows = np.flatnonzero((with_label != other).any(axis=(1, 2)))
        assert len(rows)
        assert rows.max() < 60  # above the box and nowhere else


def test_instances_and_categories_have_colors_of_their_own() -> None:
    things = [thing(5, 100, 40), thing(60, 100, 40), thing(120, 100, 40, category_id=90)]
    picture = overlay(GREY, things, CATEGORIES)
    assert len({tuple(picture[130, x + 25]) for x in (5, 60, 120)}) == 3


def test_the_surest_is_on_top() -> None:
    sure, unsure = thing(60, 60, 100, score=0.9), thing(60, 60, 100, score=0.3, category_id=90)
    both = overlay(GREY, [sure, unsure], CATEGORIES)
    np.testing.assert_array_equal(both, overlay(GREY, [unsure, sure], CATEGORIES))
    np.testing.assert_array_equal(both[159, 100], overlay(GREY, [sure], CATEGORIES)[159, 100])


def test_labels_do_not_hide_each_other() -> None:
    same_place = [thing(60, 60, 100, segmentation=None, score=score) for score in (0.9, 0.8)]
    one, two = (changed(overlay(GREY, same_place[:n], CATEGORIES)).sum() for n in (1, 2))
    assert two > one + 200


def test_zoom_enlarges_before_drawing() -> None:
    picture = overlay(GREY, [thing(60, 60, 100, segmentation=None)], CATEGORIES, zoom=2)
    assert picture.shape == (400, 480, 3)
    assert (picture[319, 130:310] != 120).any(axis=-1).all()


@pytest.mark.parametrize(
    "each",
    [
        thing(-50, -50, 20, segmentation=None),
        thing(500, 500, 20, segmentation=None),
        thing(60, 60, 0, segmentation=None),
        thing(0, 0, 300, segmentation=None),
        thing(60, 60, 30, category_id=77),
        thing(60, 60, 30, iscrowd=1),
    ],
)
def test_odd_objects_do_not_stop_it(each: dict[str, Any]) -> None:
    assert changed(overlay(GREY, [each], CATEGORIES)).any()


def test_small_image() -> None:
    assert overlay(GREY[:3, :2], [thing(0, 0, 2, segmentation=None)], CATEGORIES).shape == (3, 2, 3)


def test_mask_of_another_size() -> None:
    wrong = thing(0, 0, 5, segmentation={"size": [5, 5], "counts": [25]})
    with pytest.raises(ValueError, match="size"):
        overlay(GREY, [wrong], CATEGORIES)


def test_grid_shows_truth_and_prediction_side_by_side(tmp_path: Path) -> None:
    images = [GREY, GREY[:, :100], np.full((50, 60, 3), 120, np.uint8)]
    path = tmp_path / "new" / "grid.png"
    truth = thing(60, 60, 100)
    del truth["score"]
    prediction_grid(images, [[thing(60, 60, 100, score=0.4)], [], []], [[truth], [], []], CATEGORIES, path)
    sheet = load_image(path).astype(int)
    width = (sheet.shape[1] - 4 * 8 - 8) // 4
    cell = slice(30, 30 + 200)
    assert (abs(sheet[cell, :width] - 120) > 20).any(axis=-1).sum() > 5000  # the truth
    predicted = sheet[cell, width + 8 : width + 8 + 240]
    assert (predicted == 120).all()  # below the threshold


def test_grid_needs_a_list_for_each_image(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="1 images, 0 detections"):
        prediction_grid([GREY], [], [[]], CATEGORIES, tmp_path / "grid.png")
    with pytest.raises(ValueError, match="0 images"):
        prediction_grid([], [], [], CATEGORIES, tmp_path / "grid.png")


class Greys:
    categories = CATEGORIES
    sizes = np.asarray([[200, 240]] * 3, np.int32)
    image_ids = np.asarray([5, 6, 7])
    usable = np.ones(3, np.int32)

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> Record:
        return Record(index, int(self.image_ids[index]), "", GREY, ())

    def ground_truth(self) -> dict[str, Any]:
        return {"annotations": [thing(60, 60, 100, image_id=6)]}


def test_predictions_of_a_source(tmp_path: Path) -> None:
    results = [thing(60, 60, 100, image_id=7)]
    save_predictions(Greys(), results, tmp_path / "grid.png", count=2)
    save_predictions(Greys(), results, tmp_path / "all.png", count=9)
    assert len(load_image(tmp_path / "all.png")) > len(load_image(tmp_path / "grid.png"))


def test_where_masks_do_not_count_broken_ones_are_not_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, broken = ({"annotations": [thing(60, 60, 100, image_id=6, segmentation=s)]} for s in (None, [[1, 2, 3]]))
    for name, truth in (("plain", plain), ("broken", broken)):
        monkeypatch.setattr(Greys, "ground_truth", lambda self, truth=truth: truth)
        save_predictions(Greys(), [], tmp_path / f"{name}.png", masks=False)
    assert (tmp_path / "plain.png").read_bytes() == (tmp_path / "broken.png").read_bytes()
    with pytest.raises(ValueError, match="segmentation"):
        save_predictions(Greys(), [], tmp_path / "masks.png")
