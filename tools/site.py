"""Lay out the pages of the documentation site, from which zensical builds it (make site).

    python -m tools.site [build/site/pages]

README.md becomes the start page, documents keep their names, notebooks become pages with their stored outputs.  Links
work as on GitHub: one to a page leads to it, and a file of the code that is linked to becomes a page too.
"""

import argparse
import os
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).resolve().parents[1]
LINK = re.compile(r"(?P<begin>\]\()(?!\w+:|#)(?P<path>[^)#\s]+)(?P<end>#[^)\s]+)?\)")
BLOCK = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)
LANGUAGES = {".py": "python", ".toml": "toml", ".cff": "yaml", ".yml": "yaml"}
#: pages beside those in docs/: file of the repository -> page
NAMED = {"README.md": "index.md", "CHANGELOG.md": "CHANGELOG.md", "benchmarks/README.md": "BENCHMARK_PROGRAMS.md"}


def pages() -> dict[str, str]:
    """The documents that become pages: path in the repository -> path in the site."""
    documents = sorted(path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md"))
    notebooks = sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb"))
    found = NAMED | {f"docs/{name}": name for name in documents}
    return found | {f"notebooks/{name}.ipynb": f"notebooks/{name}.md" for name in notebooks}


def lay_out(target: Path) -> list[str]:
    """Write all pages and what they show into an empty folder.

    Args:
        target: the folder; what is in it is removed.

    Returns:
        The pages that were written, as paths inside the folder.

    Raises:
        ValueError: a document links to what is not there, or leads out of the repository.
    """
    shutil.rmtree(target, ignore_errors=True)
    known = pages()
    linked: set[str] = set()
    for source, page in known.items():
        text = _notebook(ROOT / source, target / page) if source.endswith(".ipynb") else (ROOT / source).read_text()
        _write(target / page, "".join(_relinked(text, source, page, known, linked)))
    for source in sorted(linked):
        if (ROOT / source).suffix in (".png", ".jpg", ".svg", ".json"):
            _copy(ROOT / source, target / _place(source))
        else:
            _write(target / _place(source), _as_page(source))
    return [*known.values(), *map(_place, sorted(linked))]


def _relinked(text: str, source: str, page: str, known: dict[str, str], linked: set[str]) -> Iterator[str]:
    """The pieces of a document with its links as the site needs them; files that are no pages go into ``linked``."""

    def moved(link: re.Match[str]) -> str:
        if link["path"].startswith(_pictures(page)):  # they lie beside the page already
            return link[0]
        path = os.path.normpath(PurePosixPath(source).parent / link["path"])
        if not (ROOT / path).exists() or path.startswith(".."):
            raise ValueError(f"{source}: expected a link to a file of the repository, got {link['path']}")
        if path not in known:
            linked.add(path)
        place = known.get(path) or _place(path)
        return f"{link['begin']}{os.path.relpath(place, PurePosixPath(page).parent)}{link['end'] or ''})"

    at = 0
    for block in BLOCK.finditer(text):  # what looks like a link in a block of code is none
        yield LINK.sub(moved, text[at : block.start()])
        yield block[0]
        at = block.end()
    yield LINK.sub(moved, text[at:])


def _place(source: str) -> str:
    """Where a file that a document links to lies in the site: pictures as they are, code as a page of its text."""
    if source.startswith("docs/"):
        return source.removeprefix("docs/")
    return f"files/{source}.md"


def _as_page(source: str) -> str:
    """The text of a file as a page; of a folder, its list of files."""
    path = ROOT / source
    if path.is_dir():
        names = sorted(child.name for child in path.iterdir() if child.is_file())
        return f"# {source}\n\n" + "".join(f"- `{name}`\n" for name in names)
    return f"# {source}\n\n````{LANGUAGES.get(path.suffix, 'text')}\n{path.read_text().rstrip()}\n````\n"


def _pictures(page: str) -> str:
    """The folder beside the page of a notebook that holds its pictures."""
    return f"{PurePosixPath(page).stem}_files/"


def _notebook(source: Path, page: Path) -> str:
    """A notebook as Markdown, with the outputs that are stored in it; its pictures go beside the page."""
    try:
        from nbconvert.exporters.markdown import MarkdownExporter
    except ImportError as error:
        raise ImportError("notebooks become pages by nbconvert: pip install 'jaxdet[docs]'") from error
    text, resources = MarkdownExporter().from_filename(str(source), {"output_files_dir": _pictures(page.name)[:-1]})
    for name, content in resources["outputs"].items():
        (page.parent / name).parent.mkdir(parents=True, exist_ok=True)
        (page.parent / name).write_bytes(content)
    return str(text)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def main(words: Sequence[str] | None = None) -> int:
    """Lay the pages out; 1 with a message where a link leads nowhere."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n\n")[0])
    parser.add_argument("target", nargs="?", type=Path, default=ROOT / "build" / "site" / "pages")
    arguments = parser.parse_args(words)
    try:
        written = lay_out(arguments.target)
    except (ValueError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{len(written)} pages and pictures in {arguments.target}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
