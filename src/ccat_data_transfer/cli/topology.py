"""`topology`: sites and data locations, declared in one file."""

from pathlib import Path

import click

from ccat_data_transfer.cli import commands, options, output, preparation


@click.group(
    cls=commands.Group,
    epilog="\b\nExample:\n  ccat_data_transfer topology apply topology.toml",
)
def topology() -> None:
    """Declare sites and data locations in one file, and show what is declared."""


@topology.command(
    example="""
    ccat_data_transfer topology apply topology.toml
    ccat_data_transfer topology show > topology.toml
    """
)
@click.argument("file", metavar="FILE", type=click.Path(path_type=Path))
@options.as_json
def apply(file: Path, as_json: bool) -> None:
    """Make the topology what FILE declares.

    What the file leaves out is removed. Refused, with nothing changed, when a copy or an operation would lose its
    place. Applying the same file again changes nothing.
    """
    from ccat_data_transfer import topology as topologies

    declaration = topologies.load(file)
    preparation.for_writing()
    changes = topologies.apply(declaration)
    if as_json:
        output.write_json(changes)
        return
    output.lines(
        f"{change.what} '{change.name}' {change.action}" + "".join(f"; {detail}" for detail in change.details)
        for change in changes
    )


@topology.command(example="ccat_data_transfer topology show --json")
@options.as_json
def show(as_json: bool) -> None:
    """Show what is declared, as a file that `topology apply` takes."""
    from ccat_data_transfer import database
    from ccat_data_transfer import topology as topologies

    preparation.for_reading()
    with database.session_scope(read_only=True) as session:
        declaration = topologies.show(session)
    if as_json:
        output.write_json(declaration.model_dump(mode="json"))
    else:
        output.write(topologies.dump(declaration))
