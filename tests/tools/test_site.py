"""The pages of the site: every document is one, links work in both views, the API names what is documented."""

import importlib
import logging
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from tools import site

ROOT = Path(__file__).parents[2]
SETTINGS = tomllib.loads((ROOT / "zensical.toml").read_text())["project"]


def navigation(entries: list[dict[str, Any]]) -> list[str]:
    """The pages of a navigation, in order."""
    found = []
    for entry in entries:
        for target in entry.values():
            found += [target] if isinstance(target, str) else navigation(target)
    return found


def test_every_page_stands_in_the_navigation_once() -> None:
    listed = navigation(SETTINGS["nav"])
    pages = {page for page in site.pages().values() if not page.startswith("lab/")} - {"BENCHMARK_PROGRAMS.md"}
    assert sorted(listed) == sorted(pages)


def test_links_lead_to_pages_and_code_becomes_pages(tmp_path: Path) -> None:
    documents = {source: page for source, page in site.pages().items() if source.endswith(".md")}
    linked: set[str] = set()
    for source, page in documents.items():
        text = "".join(site._relinked((ROOT / source).read_text(), source, page, site.pages(), linked))
        text = site.BLOCK.sub("", text)
        known = {*site.pages().values(), *map(site._place, linked)}
        for link in site.LINK.finditer(text):
            target = (tmp_path / page).parent / link["path"]
            assert str(target.resolve().relative_to(tmp_path.resolve())) in known, (source, link[0])
    assert "configs/sbr_cnn.py" in linked
    assert "LICENSE" in linked


@pytest.mark.parametrize("link", ["[x](none.md)", "[x](../../elsewhere.md)"])
def test_a_link_to_nowhere_is_an_error(link: str) -> None:
    with pytest.raises(ValueError, match=r"docs/DATA\.md: expected a link to a file of the repository"):
        list(site._relinked(link, "docs/DATA.md", "DATA.md", site.pages(), set()))


def test_what_is_no_link_between_pages_stays() -> None:
    text = "[a](https://x.org/a.md) [b](#data) `c`\n```\n[d](none.md)\n```\n[e](DATA.md#limits)"
    moved = "".join(site._relinked(text, "docs/RUNNING.md", "RUNNING.md", site.pages(), set()))
    assert moved == text


def documented() -> list[str]:
    """What the pages of the API name."""
    return [
        name
        for page in sorted((ROOT / "docs" / "api").glob("*.md"))
        for name in re.findall(r"^::: (\S+)$", page.read_text(), re.MULTILINE)
    ]


def test_names_of_the_api_are_there_and_have_docstrings() -> None:
    names = documented()
    assert len(names) == len(set(names)) > 60
    bare = []
    for name in names:
        module, _, attribute = name.rpartition(".")
        try:
            found = importlib.import_module(name)
        except ModuleNotFoundError:
            found = getattr(importlib.import_module(module), attribute)
        if not (found.__doc__ or "").strip() or attribute.startswith("_"):
            bare.append(name)
    assert not bare


def warnings_of(package: str, folder: Path, caplog: pytest.LogCaptureFixture) -> list[str]:
    """What griffe says of the docstrings of all modules, shown or not; each is parsed as for the site."""
    griffe = pytest.importorskip("griffe", reason="pip install 'jaxdet[docs]'")

    def parse(found: Any) -> None:
        if found.docstring:
            found.docstring.parse("google")
        for member in found.members.values():
            if not member.is_alias:
                parse(member)

    with caplog.at_level(logging.WARNING):
        parse(griffe.load(package, search_paths=[folder]))
    return [record.getMessage() for record in caplog.records if record.name.startswith("griffe")]


def test_docstrings_are_in_the_form_that_griffe_reads(caplog: pytest.LogCaptureFixture) -> None:
    assert warnings_of("jaxdet", ROOT, caplog) == []


def test_a_docstring_in_another_form_is_found(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    lines = ("def f(a: int, b: int) -> None:", '    """F.', "", "    Args:", "        a, b: two.", '    """')
    (tmp_path / "grouped.py").write_text("\n".join(lines))
    assert any("'a, b'" in text for text in warnings_of("grouped", tmp_path, caplog))


def test_comments_of_attributes_are_read(tmp_path: Path) -> None:
    griffe = pytest.importorskip("griffe", reason="pip install 'jaxdet[docs]'")
    (tmp_path / "shown.py").write_text(
        "from dataclasses import dataclass\n\n\n@dataclass\nclass A:\n"
        "    a: int = 1  #: pixels\n    #: a long one,\n    #: on two lines\n    b: int = 2\n    c: int = 3\n"
    )
    extensions = griffe.load_extensions(str(ROOT / "tools" / "attribute_comments.py"))
    members = griffe.load("shown", search_paths=[tmp_path], extensions=extensions)["A"].members
    texts = {name: members[name].docstring and members[name].docstring.value for name in "abc"}
    assert texts == {"a": "pixels", "b": "a long one, on two lines", "c": None}
