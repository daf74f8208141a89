"""Reading the documentation: files, headings, links, code blocks and tables."""

import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def documents() -> list[Path]:
    """Every document of the project, as a path below its root."""
    found = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    return sorted(path.relative_to(ROOT) for path in found)


def text(name: str | Path) -> str:
    """A document."""
    return (ROOT / name).read_text(encoding="utf-8")


def blocks(name: str | Path) -> list[tuple[str, str]]:
    """The code blocks of a document: their language and their text."""
    return re.findall(r"^ *```(\w*)\n(.*?)^ *```$", text(name), flags=re.MULTILINE | re.DOTALL)


def prose(name: str | Path) -> str:
    """A document without its code blocks."""
    return re.sub(r"^ *```.*?^ *```$", "", text(name), flags=re.MULTILINE | re.DOTALL)


def headings(name: str | Path) -> list[str]:
    """The headings of a document, without code marks."""
    return [line.replace("`", "") for line in re.findall(r"^#+ (.+)$", prose(name), flags=re.MULTILINE)]


def anchors(name: str | Path) -> set[str]:
    """What links may name behind a `#`, made as GitHub makes it."""
    return {anchor(heading) for heading in headings(name)}


def anchor(heading: str) -> str:
    """The anchor of a heading."""
    kept = (c for c in heading.lower() if c in " -_" or unicodedata.category(c)[0] in "LN")
    return "".join(kept).replace(" ", "-")


def links(name: str | Path) -> list[str]:
    """The targets of the links in a document."""
    return re.findall(r"\]\(([^)\s]+)\)", prose(name))


def section(name: str | Path, heading: str) -> str:
    """What stands below a heading, without code blocks, up to the next of the same or a higher level."""
    level, body = re.split(rf"^(#+) {re.escape(heading)}$", prose(name), maxsplit=1, flags=re.MULTILINE)[1:]
    return re.split(rf"^#{{1,{len(level)}}} ", body, maxsplit=1, flags=re.MULTILINE)[0]


def first_cells(part: str) -> list[str]:
    """The first cell of each row of the tables in a text, without marks."""
    cells = re.findall(r"^\| *([^|]+?) *\|", part, flags=re.MULTILINE)
    return [cell.strip("*`") for cell in cells if not cell.startswith("-")]


def commands(name: str | Path) -> Iterator[list[str]]:
    """The calls of this program in the code blocks of a document, as words after its name."""
    for language, block in blocks(name):
        if language not in {"sh", "console"}:
            continue
        for line in block.splitlines():
            call = line.strip()
            if language == "console" and not call.startswith("$ "):
                continue
            words = call.removeprefix("$ ").partition(" #")[0].split()
            if words and words[0] == "ccat_data_transfer":
                yield words[1 : words.index(">") if ">" in words else None]
    for call in re.findall(r"`ccat_data_transfer ([^`]+)`", prose(name)):
        yield call.split()
