import os

import pytest

from jaxdet.data.validation.names import missing_files, missing_text, other_spelling


@pytest.fixture
def folder(tmp_path):
    inside = tmp_path / "images"
    (inside / "sub").mkdir(parents=True)
    for name in ("a.png", "b c.png", "sub/d.png", "U\u0308.png", "e%20f.png", "../secret.png"):
        (inside / name).touch()
    return inside


def test_regular_files_are_there_and_nothing_else(folder):
    os.mkfifo(folder / "pipe.png")
    (folder / "folder.png").mkdir()
    (folder / "link.png").symlink_to("a.png")
    (folder / "dangling.png").symlink_to("nowhere")
    there = ["a.png", "./a.png", "sub//d.png", "link.png", "e%20f.png"]
    absent = ["pipe.png", "folder.png", "dangling.png", "no/where.png", "A.png", "sub/a.png"]
    assert missing_files(folder, [*there, *absent]) == absent


def test_a_folder_is_listed_once(folder, monkeypatch):
    asked = []
    scan = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: asked.append(path) or scan(path))
    assert missing_files(folder, ["a.png", "b c.png", "sub/d.png", "a.png"]) == []
    assert len(asked) == 2


@pytest.mark.parametrize(("said", "there"), [
    ("sub\\d.png", "sub/d.png"), ("b%20c.png", "b c.png"), ("sub%5Cd.png", "sub/d.png"), ("\u00dc.png", "U\u0308.png"),
    ("%C3%9C.png", "U\u0308.png"), ("x.png", None), ("%2e%2e/secret.png", None), ("..\\secret.png", None),
    ("a%00.png", None), ("%ff.png", None),
])  # fmt: skip
def test_other_spellings(folder, said, there):
    assert other_spelling(folder, said) == there
    expected = ascii(said) if there is None else f"{said!a}, but there is {there!a}: write that in the json"
    assert missing_text(folder, said) == expected


def test_a_wrong_folder_is_told_from_a_missing_file(folder):
    assert missing_text(folder / "none", "a.png") == "'a.png', there is no such folder"
    # A json whose names begin with the folder that was named.
    assert missing_text(folder, "images/a.png") == f"'images/a.png', but it is in {folder.parent}: name that folder"
    assert missing_text(folder, "../secret.png") == "'../secret.png'"
