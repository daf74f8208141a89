"""Documents lead somewhere, and their commands exist."""

import shlex
from pathlib import Path

import click
import pytest
from tests.docs import reading

from ccat_data_transfer import cli

DOCUMENTS = reading.documents()


@pytest.mark.parametrize("name", DOCUMENTS, ids=str)
def test_links_between_documents_resolve(name: Path) -> None:
    missing = []
    for link in reading.links(name):
        if link.startswith(("https://", "http://")):
            continue
        path, _, fragment = link.partition("#")
        target = (name.parent / path) if path else name
        if not (reading.ROOT / target).exists() or (
            fragment and fragment not in reading.anchors((reading.ROOT / target).resolve().relative_to(reading.ROOT))
        ):
            missing.append(link)
    assert not missing


def test_every_document_is_reached_from_the_readme() -> None:
    reached, waiting = set(), [Path("README.md")]
    while waiting:
        name = waiting.pop()
        if name in reached or name.suffix != ".md":
            continue
        reached.add(name)
        for link in reading.links(name):
            path = link.partition("#")[0]
            if path and not path.startswith("http"):
                waiting.append((reading.ROOT / name.parent / path).resolve().relative_to(reading.ROOT))
    assert reached == set(DOCUMENTS)


@pytest.mark.parametrize("name", DOCUMENTS, ids=str)
def test_commands_in_documents_exist_and_take_their_options(name: Path) -> None:
    for words in reading.commands(name):
        _check(words)


def _check(words: list[str]) -> None:
    """Parse a command as the program does, without running it."""
    group: click.Command = cli.root
    context = click.Context(cli.root, info_name="ccat_data_transfer")
    rest = list(words)
    while isinstance(group, click.Group) and rest and not rest[0].startswith("-"):
        found = group.get_command(context, rest[0])
        assert found is not None, f"no command '{shlex.join(words)}'"
        group, context, rest = found, click.Context(found, info_name=rest[0], parent=context), rest[1:]
    known = {option for parameter in group.params for option in (*parameter.opts, *parameter.secondary_opts)}
    known.add("--help")
    unknown = [word for word in rest if word.startswith("--") and word.partition("=")[0] not in known]
    assert not unknown, f"'{shlex.join(words)}' has options that do not exist"


def test_make_targets_in_documents_exist() -> None:
    makefile = reading.text("Makefile")
    for name in DOCUMENTS:
        for part in reading.text(name).split("`make ")[1:]:
            target = part.partition("`")[0].split()[0]
            assert f"\n{target}:" in makefile, f"{name}: make {target}"
