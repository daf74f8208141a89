"""Which queues workers must consume follows from the database, and from nothing else."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy.orm import sessionmaker
from tests import factories

from ccat_data_transfer import database, models, queue_discovery, settings
from ccat_data_transfer.exceptions import DatabaseError, UnknownNameError
from ccat_data_transfer.locations import LocationType

LTA = LocationType.LONG_TERM_ARCHIVE


@pytest.fixture(autouse=True)
def two_sites(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("CCAT_DATA_TRANSFER_DATABASE_URL", f"sqlite:///{tmp_path}/operations.sqlite")
    settings.get.cache_clear()
    models.Base.metadata.create_all(database.engine())
    with database.session_scope() as session:
        cologne = factories.make_site(session, "cologne", "University of Cologne")
        factories.make_location(session, "/b", site=cologne)
        factories.make_location(session, "/lta", site=cologne, name="lta", location_type=LTA)
        factories.make_location(session, "/lta2", site=cologne, name="dark", location_type=LTA)
        factories.make_location(session, "/old", site=cologne, name="old", location_type=LTA, active=False)
        chile = factories.make_site(session, "chile", "Chajnantor")
        factories.make_location(session, "/c", site=chile, name="lta", location_type=LTA)
    yield
    database.dispose()
    settings.get.cache_clear()


@pytest.fixture
def service() -> queue_discovery.QueueDiscoveryService:
    return queue_discovery.QueueDiscoveryService()


@pytest.mark.parametrize("site", ["cologne", "University of Cologne", "COLOGNE"])
def test_a_site_has_one_queue_for_each_active_archive(
    service: queue_discovery.QueueDiscoveryService, site: str
) -> None:
    assert service.queues_for_site(site) == [
        "cologne_dark_long_term_archive_transfer",
        "cologne_lta_long_term_archive_transfer",
    ]


def test_without_a_site_all_queues_are_found(service: queue_discovery.QueueDiscoveryService) -> None:
    assert "chile_lta_long_term_archive_transfer" in service.queues_for_site()
    assert len(service.queues_for_site()) == 3


@pytest.mark.parametrize(
    ("site", "location", "expected"),
    [
        (None, "lta", ["chile/lta", "cologne/lta"]),
        ("cologne", "lta", ["cologne/lta"]),
        (None, "cologne/dark", ["cologne/dark"]),
        ("chile", "cologne/dark", []),
        ("cologne", "old", []),
        ("cologne", "buffer", []),
        ("chile", None, ["chile/lta"]),
    ],
)
def test_locations_are_found_by_site_and_name(
    service: queue_discovery.QueueDiscoveryService, site: str | None, location: str | None, expected: list[str]
) -> None:
    assert [str(found) for found in service.locations(site, location)] == expected


@pytest.mark.parametrize(("site", "location"), [("mars", None), (None, "mars/lta"), (None, "cologne/mars")])
def test_what_does_not_exist_is_an_error(
    service: queue_discovery.QueueDiscoveryService, site: str | None, location: str | None
) -> None:
    with pytest.raises(UnknownNameError, match="mars"):
        service.locations(site, location)


def test_a_deactivated_archive_loses_its_queue(service: queue_discovery.QueueDiscoveryService) -> None:
    with database.session_scope() as session:
        for row in session.query(models.DataLocation):
            row.active = False
    assert service.queues_for_site() == []


def test_the_queue_of_a_row_and_of_its_value_are_the_same(service: queue_discovery.QueueDiscoveryService) -> None:
    with database.session_scope() as session:
        for row in session.query(models.DataLocation):
            assert service.queue_of(row) == service.queue_of(row.value()) == row.value().queue


def test_an_engine_or_a_maker_of_sessions_is_taken_instead_of_the_configured_database() -> None:
    for source in (database.engine(), sessionmaker(database.engine())):
        assert len(queue_discovery.QueueDiscoveryService(source).queues_for_site()) == 3


def test_trouble_of_the_database_is_told_as_such(tmp_path: Path) -> None:
    engine = database.create_engine(f"sqlite:///{tmp_path}/other.sqlite")
    for source in (engine, sessionmaker(engine)):
        with pytest.raises(DatabaseError):
            queue_discovery.QueueDiscoveryService(source).queues_for_site()
    engine.dispose()
