"""Seeing that there is a database, before a command uses it: made when it writes, named when it is not there."""

from pathlib import Path
from typing import TYPE_CHECKING

from ccat_data_transfer import names
from ccat_data_transfer.exceptions import DatabaseError

if TYPE_CHECKING:
    from sqlalchemy.engine import URL


def for_writing() -> None:
    """See that the database has this program's tables. SQLite, which nobody administers, is made or upgraded.

    Raises `DatabaseError`; for PostgreSQL at another schema it says that `db upgrade` is needed.
    """
    from ccat_data_transfer import database, migrations

    if sqlite_file() is None:
        database.check_schema()
        return
    migrations.upgrade()


def for_reading() -> None:
    """See that there is a database with this program's tables; makes nothing. Raises `DatabaseError`."""
    from ccat_data_transfer import database

    if not exists():
        raise DatabaseError(
            f"there is no database at '{sqlite_file()}'",
            remedy="run `ccat_data_transfer archive` or `ccat_data_transfer topology apply` here, or set --workdir",
        )
    database.check_schema()


def exists() -> bool:
    """Whether there may be a database: opening SQLite would make the file, so it is looked for first.

    Raises `DatabaseError` when that cannot be seen.
    """
    file = sqlite_file()
    try:
        return file is None or file.exists()
    except OSError as error:
        raise DatabaseError(
            f"whether there is a database at '{names.shown(str(file))}' cannot be seen: {error.strerror}",
            remedy="let this user enter its folder, or set another with --workdir",
        ) from error


def sqlite_file() -> Path | None:
    """The file of the database, or None when it is not SQLite."""
    url = _url()
    if url.get_backend_name() != "sqlite" or not url.database:
        return None
    return Path(url.database)


def shown() -> str:
    """The database as it may be printed: a path, or a URL without its password."""
    file = sqlite_file()
    if file is not None:
        return str(file)
    return _url().set(drivername="postgresql").render_as_string(hide_password=True)


def _url() -> "URL":
    from ccat_data_transfer import database, settings

    return database.normalised_url(settings.get().database)
