"""`archive`: the main job in one command, nothing set up before. `archiving` does it."""

import click

from ccat_data_transfer.cli import commands, options

_EXAMPLE = """
ccat_data_transfer archive ./night-1 ./night-2 --to /archive/a --to /archive/b
ccat_data_transfer archive obs-0421.tar --to file:///archive/a --json
"""


@commands.command("archive", example=_EXAMPLE)
@click.argument("paths", nargs=-1, required=True, metavar="PATH...", type=click.Path())
@click.option(
    "--to",
    "destination_texts",
    multiple=True,
    required=True,
    metavar="DEST",
    help="Archive directory, as a path or file:// URL; made if it is new. May be given several times.",
)
@options.no_headers
@click.option("--dry-run", is_flag=True, help="Show what would become a package, and do nothing.")
@options.as_json
def archive(
    paths: tuple[str, ...], destination_texts: tuple[str, ...], no_headers: bool, dry_run: bool, as_json: bool
) -> None:
    """Archive folders and tars: register, copy, verify, and say what was done.

    Each PATH is a tar, which is a package as it is, a file, or a folder. Tars in a folder are taken as they are. Its
    other files are packed, all together; if it has only subfolders, each of them becomes a package.

    A package is archived when its bytes are durable at the destination, were read back from the medium and found
    equal to its checksum. The sources are only read. Running the same command again does only what is missing.

    Database and topology are made in the working directory if there are none.
    """
    from ccat_data_transfer.cli import archiving

    archiving.run(paths, destination_texts, reads_headers=not no_headers, dry_run=dry_run, as_json=as_json)
