"""Topology on PostgreSQL: processes that make or change it at the same time agree on one row each."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import pytest
import sqlalchemy as sa
from tests import factories

from ccat_data_transfer import database, models, settings, topology
from ccat_data_transfer.exceptions import TopologyError
from ccat_data_transfer.locations import LocationType

pytestmark = pytest.mark.postgresql

T = TypeVar("T")


@pytest.fixture(autouse=True)
def configured(postgresql_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("CCAT_DATA_TRANSFER_DATABASE_URL", postgresql_url)
    settings.get.cache_clear()
    models.Base.metadata.create_all(database.engine())
    yield
    database.dispose()
    settings.get.cache_clear()


def at_once(act: Callable[[], T], times: int = 4) -> list[T]:
    barrier = threading.Barrier(times)

    def wait_and_act() -> T:
        barrier.wait(30)
        return act()

    with ThreadPoolExecutor(times) as pool:
        return [future.result(60) for future in [pool.submit(wait_and_act) for _ in range(times)]]


def declaration(root: Path, *names: str) -> topology.Declaration:
    places = (
        topology.DiskPlace(name=name, location_type=LocationType.LONG_TERM_ARCHIVE, path=str(root / name))
        for name in names
    )
    site = topology.SiteDeclaration(name="Cologne", short_name="cologne", data_locations=tuple(places))
    return topology.Declaration(sites=(site,))


def test_the_local_topology_is_made_once_by_many(tmp_path: Path) -> None:
    (tmp_path / "archive").mkdir()
    made = at_once(
        lambda: topology.ensure_local(working_directory=tmp_path / "work", destinations=[tmp_path / "archive"])
    )
    assert all(each == made[0] for each in made)
    with database.session_scope() as session:
        assert session.scalar(sa.select(sa.func.count()).select_from(models.DataLocation)) == 3


def test_a_topology_is_applied_once_by_many(tmp_path: Path) -> None:
    (tmp_path / "lta").mkdir()
    wanted = declaration(tmp_path, "lta")
    results = at_once(lambda: [change.action for change in topology.apply(wanted)])
    assert sorted(results) == [["created", "created"], *[["unchanged", "unchanged"]] * 3]
    with database.session_scope() as session:
        assert topology.show(session) == wanted


def test_a_directory_is_enrolled_once_by_many(tmp_path: Path) -> None:
    with database.session_scope() as session:
        location_id = factories.make_location(session, tmp_path).id
    assert len(set(at_once(lambda: topology.enrol(location_id)))) == 1


def test_a_location_with_copies_is_neither_moved_nor_removed(tmp_path: Path) -> None:
    topology.apply(declaration(tmp_path, "lta", "empty"))
    with database.session_scope() as session:
        factories.make_package(session, at=topology.find_location(session, "cologne/lta"))
    with pytest.raises(TopologyError, match="'cologne/lta' is left out"):
        topology.apply(declaration(tmp_path, "empty"))
    with pytest.raises(TopologyError, match="this cannot change: path"):
        topology.apply(declaration(tmp_path / "elsewhere", "lta", "empty"))
    changes = topology.apply(declaration(tmp_path, "lta"))
    assert {change.name: change.action for change in changes}["cologne/empty"] == "removed"
