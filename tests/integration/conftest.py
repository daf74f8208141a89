"""A migrated PostgreSQL database for each test, cloned from a template that is migrated once."""

from collections.abc import Iterator

import pytest
from tests import servers

from ccat_data_transfer import database, migrations, settings


@pytest.fixture(scope="session")
def migrated_template(postgresql_server: servers.PostgreSQL) -> str:
    """Name of a database with all tables, to be cloned."""
    name = postgresql_server.create_database()
    migrations.upgrade(postgresql_server.database_url(name))
    database.dispose()
    return name


@pytest.fixture
def operations_url(
    postgresql_server: servers.PostgreSQL, migrated_template: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    """The URL of an empty database with all tables, which is also the configured one."""
    with postgresql_server.database(template=migrated_template) as url:
        monkeypatch.setenv("CCAT_DATA_TRANSFER_DATABASE_URL", url)
        settings.get.cache_clear()
        yield url
        database.dispose()
    settings.get.cache_clear()
