"""Sites and data locations: the file, bringing the database to say the same, and the topology nobody declared."""

import os
import shutil
import textwrap
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st
from tests import factories

from ccat_data_transfer import database, models, settings, topology
from ccat_data_transfer.exceptions import (
    ConfigurationError,
    InputError,
    LocationUnavailableError,
    TopologyError,
    UnknownNameError,
)
from ccat_data_transfer.locations import Location, LocationType, StorageType
from ccat_data_transfer.states import Evidence, PauseReason, PhysicalCopyStatus
from ccat_data_transfer.storage import volume

COLOGNE = """
    [[site]]
    name = "Cologne"
    short_name = "cologne"
    location = "University of Cologne, Germany"

    [[site.data_location]]
    name = "buffer"
    location_type = "buffer"
    storage_type = "disk"
    path = "{root}/buffer"
    priority = 1

    [[site.data_location]]
    name = "lta"
    location_type = "long_term_archive"
    storage_type = "disk"
    path = "{root}/lta"
"""
HEAD = '[[site]]\nname = "Cologne"\nshort_name = "cologne"\n'


@pytest.fixture(autouse=True)
def empty_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("CCAT_DATA_TRANSFER_DATABASE_URL", f"sqlite:///{tmp_path}/operations.sqlite")
    settings.get.cache_clear()
    models.Base.metadata.create_all(database.engine())
    yield
    database.dispose()
    settings.get.cache_clear()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in ("buffer", "lta"):
        (tmp_path / name).mkdir()
    return tmp_path


def declared(directory: Path, text: str) -> topology.Declaration:
    file = directory / "topology.toml"
    file.write_text(textwrap.dedent(text).replace("{root}", str(directory)))
    return topology.load(file)


def disk(name: str = "lta", **keys: str) -> str:
    given = {"location_type": '"buffer"', "storage_type": '"disk"', "path": f'"/data/{name}"'} | keys
    return f'[[site.data_location]]\nname = "{name}"\n' + "".join(f"{key} = {value}\n" for key, value in given.items())


def actions(changes: list[topology.Change]) -> dict[str, str]:
    return {change.name: change.action for change in changes}


def details(changes: list[topology.Change], name: str) -> str:
    return " / ".join(next(change.details for change in changes if change.name == name))


def rows() -> dict[str, models.DataLocation]:
    with database.session_scope() as session:
        return {str(row.value()): row for row in session.scalars(sa.select(models.DataLocation))}


def mark_in(directory: Path) -> str:
    return (
        volume.Root(
            Location(0, "any", "any", LocationType.BUFFER, StorageType.DISK, options={"path": str(directory)})
        ).mark()
        or ""
    )


def hold(name: str, status: PhysicalCopyStatus = PhysicalCopyStatus.PRESENT) -> None:
    """Put a copy of a package at a location."""
    with database.session_scope() as session:
        factories.make_package(session, at=topology.find_location(session, name), status=status)


# The file.


def test_a_file_is_read_with_its_defaults(root: Path) -> None:
    (site,) = declared(root, COLOGNE).sites
    buffer, lta = site.data_locations
    assert (site.name, site.short_name, site.location) == ("Cologne", "cologne", "University of Cologne, Germany")
    assert isinstance(buffer, topology.DiskPlace)
    assert (buffer.path, buffer.priority, buffer.active, buffer.host) == (f"{root}/buffer", 1, True, None)
    assert (lta.priority, lta.location_type, lta.required_evidence) == (
        0,
        LocationType.LONG_TERM_ARCHIVE,
        Evidence.EVICTED_UNPROVED,
    )


def test_a_path_is_normalised(tmp_path: Path) -> None:
    place = declared(tmp_path, HEAD + disk(path='"//data//x/./y/"')).sites[0].data_locations[0]
    assert isinstance(place, topology.DiskPlace)
    assert place.path == "/data/x/y"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ["declares no [[site]]"]),
        ("[[site]\n", ["not TOML", "line 1"]),
        ("a = " + "[" * 5000, ["not TOML"]),
        ("[[sites]]\n", ["key 'sites' is unknown", "allowed are site"]),
        ("[site]\n", ["must be written as [[site]]"]),
        ("site = [1]\n", ["site number 1", "must be a table"]),
        (HEAD + "[site.data_location]\n", ["site 'cologne'", "[[site.data_location]]"]),
        ('[[site]]\nname = "Cologne"\n', ["site 'Cologne'", "key 'short_name' is missing"]),
        (HEAD + "colour = 1\n", ["site 'cologne'", "key 'colour' is unknown", "short_name", "data_location"]),
        (HEAD.replace('"cologne"', '"Köln"'), ["'short_name'", "lower-case letters"]),
        (HEAD.replace('"Cologne"', '"a\\u0000b"'), ["'name'", "control characters"]),
        (HEAD.replace('"Cologne"', '" Cologne"'), ["'name'", "begin or end with a space"]),
        (HEAD.replace('"Cologne"', '""'), ["'name'"]),
        (HEAD + disk("Lta"), ["data location 'Lta'", "'name'", "lower-case"]),
        (HEAD + disk(pth='"/x"'), ["'cologne'", "'lta'", "key 'pth' is unknown", "path, host, user"]),
        (HEAD + disk(bucket_name='"x"'), ["key 'bucket_name' is unknown"]),
        (HEAD + disk(storage_type='"flash"'), ["'lta'", "'storage_type'", "disk, s3, tape"]),
        (HEAD + '[[site.data_location]]\nname = "lta"\n', ["'storage_type' is missing", "disk, s3, tape"]),
        (HEAD + disk(location_type='"archive"'), ["'location_type'", "'long_term_archive'"]),
        (HEAD + disk(priority='"1"'), ["'priority'", "integer"]),
        (HEAD + disk(priority="3000000000"), ["'priority'"]),
        (HEAD + disk(active='"yes"'), ["'active'", "boolean"]),
        (HEAD + disk(required_evidence='"hope"'), ["'required_evidence'", "'evicted-unproved'"]),
        (HEAD + disk(path='"data"'), ["'path'", "absolute"]),
        (HEAD + disk(path='"/data/../etc"'), ["'path'", "'..'"]),
        (HEAD + disk(path='"/"', location_type='"long_term_archive"'), ["root of the file system"]),
        (HEAD + disk() + disk(path='"/other"'), ["two data locations named 'lta'"]),
        (HEAD + HEAD, ["name 'Cologne'", "short_name 'cologne'"]),
        (HEAD + disk("a") + disk("b", path='"/data/a"'), ["'cologne/a'", "'cologne/b'", "/data/a", "host"]),
        (HEAD + disk("a") + disk("b", path='"/data/a/b/c"'), ["one inside the other"]),
        (HEAD + disk("a", host='"x"') + disk("b", path='"/data/a"'), ["'cologne/a'", "'cologne/b'"]),
        (
            '[[site]]\nname = "1"\nshort_name = "a"\n' + disk("b_c")
            + '[[site]]\nname = "2"\nshort_name = "a_b"\n' + disk("c"),
            ["'a/b_c'", "'a_b/c'", "share the queue 'a_b_c_long_term_archive_transfer'"],
        ),
        (
            HEAD + '[[site.data_location]]\nname="t"\nlocation_type="long_term_archive"\nstorage_type="tape"\n'
            'library_name="l"\nmount_path="/tape"\n',
            ["'cologne/t'", "'tape'", "supports disk"],
        ),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_file_is_said_with_its_place(tmp_path: Path, text: str, expected: list[str]) -> None:
    with pytest.raises(TopologyError) as refused:
        declared(tmp_path, text)
    message = str(refused.value)
    assert f"{tmp_path}/topology.toml" in message
    for part in expected:
        assert part in message


def test_all_faults_are_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(TopologyError, match=r"'lta'.*'path'.*'b'.*'active'"):
        declared(tmp_path, HEAD + disk(path='"x"') + disk("b", active="1"))


@pytest.mark.parametrize(
    "text",
    [
        HEAD + disk("a", host='"x"') + disk("b", host='"y"', path='"/data/a"'),
        HEAD + disk("inputs", path='"/"') + disk("b"),
        HEAD + disk("a") + disk("ab"),
        HEAD + disk(storage_type='"s3"', path='""').replace('path = ""', 'bucket_name = "b"\nactive = false'),
    ],
)
def test_what_only_looks_wrong_is_accepted(tmp_path: Path, text: str) -> None:
    assert declared(tmp_path, text).sites


def test_a_file_that_cannot_be_read_is_the_callers_fault(tmp_path: Path) -> None:
    for path in (tmp_path / "missing.toml", tmp_path):
        with pytest.raises(InputError, match="cannot be read"):
            topology.load(path)


@pytest.mark.timeout(20)
def test_what_never_ends_or_never_begins_is_no_topology_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(InputError, match="is not a regular file"):
            topology.load(path)
    (tmp_path / "large").write_bytes(b"#" * ((1 << 20) + 1))
    with pytest.raises(InputError, match="larger than 1048576 bytes"):
        topology.load(tmp_path / "large")
    with pytest.raises(InputError, match="cannot be read"):
        topology.load(Path("\0"))


def test_a_pipe_that_was_given_is_read(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    with open(writer, "w") as file:
        file.write(HEAD + disk())
    try:
        assert [site.short_name for site in topology.load(Path(f"/dev/fd/{reader}")).sites] == ["cologne"]
    finally:
        os.close(reader)


def test_a_file_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    (tmp_path / "latin.toml").write_bytes(HEAD.replace("Cologne", "Köln").encode("latin-1"))
    with pytest.raises(TopologyError, match="not UTF-8"):
        topology.load(tmp_path / "latin.toml")


texts = st.text(st.characters(exclude_categories=("C", "Z")), min_size=1, max_size=30)
hosts = st.none() | texts


@given(name=texts, path=texts, host=hosts, user=hosts, active=st.booleans(), priority=st.integers(-9, 9))
def test_what_is_dumped_can_be_loaded(
    tmp_path_factory: pytest.TempPathFactory,
    name: str, path: str, host: str | None, user: str | None, active: bool, priority: int,
) -> None:  # fmt: skip
    place = topology.DiskPlace(
        name="lta",
        location_type=LocationType.PROCESSING,
        path="/x" + path,
        host=host,
        user=user,
        active=active,
        priority=priority,
        required_evidence=Evidence.DIRECT,
    )
    tape = topology.TapePlace(
        name="tape", location_type=LocationType.SOURCE, library_name=name, mount_path='/mnt/"tape\\"'
    )
    s3 = topology.S3Place(
        name="s3", location_type=LocationType.SOURCE, bucket_name=name, prefix="a/b", endpoint_url="https://s3"
    )
    sites = (
        topology.SiteDeclaration(name=name, short_name="a", location="x\u00a0y", data_locations=(place, tape, s3)),
        topology.SiteDeclaration(name=name + "2", short_name="b"),
    )
    declaration = topology.Declaration(sites=sites)
    file = tmp_path_factory.mktemp("dump") / "topology.toml"
    file.write_text(topology.dump(declaration), encoding="utf-8")
    assert topology.load(file) == declaration


# Applying it.


def test_applying_makes_marks_and_is_idempotent(root: Path) -> None:
    declaration = declared(root, COLOGNE)
    changes = topology.apply(declaration)
    assert actions(changes) == {"cologne": "created", "cologne/buffer": "created", "cologne/lta": "created"}
    for name in ("buffer", "lta"):
        assert rows()[f"cologne/{name}"].volume_id == mark_in(root / name) != ""
        assert mark_in(root / name) in details(changes, f"cologne/{name}")
    assert set(actions(topology.apply(declaration)).values()) == {"unchanged"}
    assert all(not change.details for change in topology.apply(declaration))


def test_the_order_of_the_file_does_not_matter(root: Path) -> None:
    declaration = declared(root, COLOGNE + '[[site]]\nname = "Chile"\nshort_name = "chile"\n')
    topology.apply(declaration)
    turned = topology.Declaration(
        sites=tuple(
            site.model_copy(update={"data_locations": site.data_locations[::-1]}) for site in declaration.sites[::-1]
        )
    )
    assert set(actions(topology.apply(turned)).values()) == {"unchanged"}


def test_the_database_shows_what_was_applied(root: Path) -> None:
    declaration = declared(root, COLOGNE)
    topology.apply(declaration)
    with database.session_scope() as session:
        shown = topology.show(session)
    assert shown == declaration
    assert tomllib.loads(topology.dump(shown))["site"][0]["data_location"][1] == {
        "name": "lta",
        "location_type": "long_term_archive",
        "storage_type": "disk",
        "path": f"{root}/lta",
    }


def test_harmless_changes_are_made_under_copies_and_told(root: Path) -> None:
    topology.apply(declared(root, COLOGNE))
    hold("cologne/buffer")
    text = COLOGNE.replace("priority = 1", 'priority = 3\nactive = false\nhost = "daq"').replace("Germany", "Europe")
    changes = topology.apply(declared(root, text))
    assert actions(changes) == {"cologne": "updated", "cologne/buffer": "updated", "cologne/lta": "unchanged"}
    assert "priority from 1 to 3" in details(changes, "cologne/buffer")
    assert "active from true to false" in details(changes, "cologne/buffer")
    assert "Europe" in details(changes, "cologne")
    assert not rows()["cologne/buffer"].active


MOVES = [
    ("{root}/buffer", "{root}/moved"),
    ('location_type = "buffer"', 'location_type = "processing"'),
    ('storage_type = "disk"\npath = "{root}/buffer"', 'storage_type = "s3"\nbucket_name = "b"\nactive = false'),
]


@pytest.mark.parametrize(("before", "after"), MOVES)
@pytest.mark.parametrize("status", [PhysicalCopyStatus.PRESENT, PhysicalCopyStatus.DELETED])
def test_a_location_with_copies_is_not_moved(root: Path, before: str, after: str, status: PhysicalCopyStatus) -> None:
    text = textwrap.dedent(COLOGNE)
    topology.apply(declared(root, text))
    hold("cologne/buffer", status)
    with pytest.raises(TopologyError, match=r"'cologne/buffer' has 1 copy, so this cannot change"):
        topology.apply(declared(root, text.replace(before, after) + '[[site]]\nname = "New"\nshort_name = "new"\n'))
    with database.session_scope() as session:
        assert [site.short_name for site in topology.sites(session)] == ["cologne"]


@pytest.mark.parametrize(("before", "after"), MOVES)
def test_a_location_with_nothing_is_moved_and_marked_anew(root: Path, before: str, after: str) -> None:
    text = textwrap.dedent(COLOGNE)
    topology.apply(declared(root, text))
    with database.session_scope() as session:
        row = topology.find_location(session, "cologne/buffer")
        row.pause_reason, row.pause_message = PauseReason.MISSING, "gone"
    (root / "moved").mkdir()
    declaration = declared(root, text.replace(before, after))
    assert actions(topology.apply(declaration))["cologne/buffer"] == "updated"
    row = rows()["cologne/buffer"]
    assert row.pause_reason is None
    if isinstance(row, models.DiskDataLocation):
        assert row.volume_id == mark_in(Path(row.path))
    else:
        assert row.volume_id is None
    assert set(actions(topology.apply(declaration)).values()) == {"unchanged"}


def test_all_refusals_are_told_at_once_and_nothing_is_changed(root: Path) -> None:
    topology.apply(declared(root, COLOGNE))
    hold("cologne/buffer")
    with database.session_scope() as session:
        package = factories.make_package(session)
        factories.make_operation(session, package, topology.find_location(session, "cologne/lta"))
    with pytest.raises(TopologyError) as refused:
        topology.apply(declared(root, '[[site]]\nname = "New"\nshort_name = "new"\n'))
    assert "'cologne/buffer' is left out but has 1 copy" in str(refused.value)
    assert "'cologne/lta' is left out but has 1 operation" in str(refused.value)
    assert "active = false" in str(refused.value)
    with database.session_scope() as session:
        assert [site.short_name for site in topology.sites(session)] == ["cologne"]


def test_what_is_left_out_and_holds_nothing_is_removed(root: Path) -> None:
    topology.apply(declared(root, COLOGNE))
    changes = topology.apply(declared(root, '[[site]]\nname = "New"\nshort_name = "new"\n'))
    assert actions(changes) == {
        "new": "created",
        "cologne": "removed",
        "cologne/buffer": "removed",
        "cologne/lta": "removed",
    }
    assert rows() == {}
    assert mark_in(root / "lta")


def test_what_is_left_out_and_has_only_a_past_stays_inactive(root: Path) -> None:
    topology.apply(declared(root, COLOGNE))
    hold("cologne/lta", PhysicalCopyStatus.DELETED)
    text = COLOGNE.replace('"lta"', '"archive"')  # takes over its directory, too
    changes = topology.apply(declared(root, text))
    assert actions(changes)["cologne/lta"] == "updated"
    assert "kept for 1 copy" in details(changes, "cologne/lta")
    assert not rows()["cologne/lta"].active
    assert rows()["cologne/archive"].volume_id == mark_in(root / "lta")
    assert actions(topology.apply(declared(root, text)))["cologne/lta"] == "unchanged"


def test_two_sites_swap_their_names(root: Path) -> None:
    text = '[[site]]\nname = "A"\nshort_name = "one"\n[[site]]\nname = "B"\nshort_name = "two"\n'
    topology.apply(declared(root, text))
    topology.apply(declared(root, text.replace('"A"', '"C"').replace('"B"', '"A"').replace('"C"', '"B"')))
    with database.session_scope() as session:
        assert [(site.short_name, site.name) for site in topology.sites(session)] == [("one", "B"), ("two", "A")]


def test_two_locations_swap_their_directories(root: Path) -> None:
    topology.apply(declared(root, COLOGNE))
    text = COLOGNE.replace("{root}/buffer", "{root}/x").replace("{root}/lta", "{root}/buffer")
    topology.apply(declared(root, text.replace("{root}/x", "{root}/lta")))
    assert rows()["cologne/buffer"].volume_id == mark_in(root / "lta")
    assert rows()["cologne/lta"].volume_id == mark_in(root / "buffer")


def test_a_directory_that_is_missing_or_elsewhere_is_only_reported_and_marked_later(root: Path) -> None:
    (root / "lta").rmdir()
    changes = topology.apply(declared(root, COLOGNE))
    assert actions(changes)["cologne/lta"] == "created"
    assert "not enrolled: " in details(changes, "cologne/lta")
    assert rows()["cologne/lta"].volume_id is None
    (root / "lta").mkdir()
    changes = topology.apply(declared(root, COLOGNE))
    assert actions(changes)["cologne/lta"] == "updated"
    assert rows()["cologne/lta"].volume_id == mark_in(root / "lta")
    elsewhere = COLOGNE.replace("priority = 1", 'host = "elsewhere.example"').replace("/buffer", "/other")
    (root / "other").mkdir()
    assert "not enrolled: " in details(topology.apply(declared(root, elsewhere)), "cologne/buffer")
    assert not mark_in(root / "other")


def test_a_mark_that_is_already_there_is_adopted(root: Path) -> None:
    topology.apply(declared(root, COLOGNE))
    mark = mark_in(root / "lta")
    topology.apply(declared(root, '[[site]]\nname = "New"\nshort_name = "new"\n'))
    topology.apply(declared(root, COLOGNE))
    assert rows()["cologne/lta"].volume_id == mark == mark_in(root / "lta")


def test_one_directory_under_two_names_is_refused_and_nothing_is_changed(root: Path) -> None:
    (root / "lta").rmdir()
    (root / "lta").symlink_to(root / "buffer")
    with pytest.raises(TopologyError, match="marked as that of") as refused:
        topology.apply(declared(root, COLOGNE))
    assert volume.SENTINEL in refused.value.remedy
    assert rows() == {}


def test_a_declaration_that_was_made_in_memory_is_checked_too() -> None:
    sites = [topology.SiteDeclaration(name=name, short_name="x") for name in ("a", "b")]
    with pytest.raises(TopologyError, match="short_name 'x'"):
        topology.apply(topology.Declaration(sites=tuple(sites)))


def test_enrolling_returns_the_mark_that_counts(root: Path) -> None:
    with database.session_scope() as session:
        location = factories.make_location(session, root / "buffer")
        whole = factories.make_location(session, "/", name="inputs")
        missing = factories.make_location(session, root / "missing", name="missing")
        again = factories.make_location(session, root / "buffer", name="again")
    assert topology.enrol(location.id) == mark_in(root / "buffer") == rows()["cologne/buffer"].volume_id
    assert topology.enrol(location.id) == mark_in(root / "buffer")
    assert topology.enrol(whole.id) is None
    with pytest.raises(LocationUnavailableError):
        topology.enrol(missing.id)
    with pytest.raises(TopologyError, match="'cologne/again' is marked as that of data location 'cologne/buffer'"):
        topology.enrol(again.id)
    with pytest.raises(UnknownNameError):
        topology.enrol(4711)


# Finding by name.


def test_sites_are_found_by_short_name_name_and_either_in_any_case() -> None:
    with database.session_scope() as session:
        cologne = factories.make_site(session, "cologne", "Universität zu Köln")
        other = factories.make_site(session, "other", "cologne")
        assert topology.find_site(session, "cologne") is cologne
        assert topology.find_site(session, "Universität zu Köln") is cologne
        assert topology.find_site(session, "UNIVERSITÄT ZU KÖLN") is cologne
        assert topology.find_site(session, "Other") is other
        with pytest.raises(UnknownNameError, match="more than one") as refused:
            topology.find_site(session, "COLOGNE")
        assert "other (cologne)" in refused.value.remedy


def test_an_unknown_name_lists_the_known_ones(root: Path) -> None:
    with database.session_scope() as session:
        with pytest.raises(UnknownNameError) as refused:
            topology.find_site(session, "mars\x1b")
        assert "topology apply" in refused.value.remedy
        assert "\x1b" not in str(refused.value)
    topology.apply(declared(root, COLOGNE))
    with database.session_scope() as session:
        assert topology.find_location(session, "Cologne/LTA").name == "lta"
        for name in ("lta", "cologne/", "cologne/mars", "cologne/lta/x", "/"):
            with pytest.raises(UnknownNameError) as refused:
                topology.find_location(session, name)
            assert "cologne" in refused.value.remedy


# The topology nobody declared.


def test_the_local_topology_is_made_once_and_found_again(tmp_path: Path) -> None:
    (tmp_path / "Archive 1").mkdir()
    made = topology.ensure_local(working_directory=tmp_path / "work", destinations=[tmp_path / "Archive 1"])
    assert topology.ensure_local(working_directory=tmp_path / "work", destinations=[tmp_path / "Archive 1"]) == made
    assert {str(made.inputs), str(made.packed)} == {"local/inputs", "local/packed"}
    assert [str(location) for location in made.destinations] == ["local/archive-1"]
    assert (made.inputs.options, made.inputs.volume_id) == ({"path": "/"}, None)
    assert made.packed.options == {"path": f"{tmp_path}/work/packed"}
    assert made.packed.volume_id == mark_in(tmp_path / "work/packed") != ""
    assert made.destinations[0].volume_id == mark_in(tmp_path / "Archive 1") != ""
    assert not Path("/", volume.SENTINEL).exists()
    assert (tmp_path / "work/packed").stat().st_mode & 0o777 == 0o755
    assert {name: row.priority for name, row in rows().items()} == {
        "local/inputs": 1,
        "local/packed": 0,
        "local/archive-1": 0,
    }
    assert len(rows()) == 3
    assert {made.inputs.location_type, made.packed.location_type} == {LocationType.SOURCE}


def test_the_buffers_of_an_earlier_version_become_sources_under_their_copies(tmp_path: Path) -> None:
    before = topology.ensure_local(working_directory=tmp_path / "work", destinations=[])
    with database.session_scope() as session:
        for name in ("inputs", "packed"):
            topology.find_location(session, f"local/{name}").location_type = LocationType.BUFFER
        topology.find_site(session, "local").seen_topology = "as it was"
        factories.make_location(session, "/data/inputs", site=topology.find_site(session, "local"), name="other")
    hold("local/inputs")
    (tmp_path / "work").rename(tmp_path / "moved")
    after = topology.ensure_local(working_directory=tmp_path / "moved", destinations=[])
    assert [after.inputs.id, after.packed.id] == [before.inputs.id, before.packed.id]
    kinds = {name: row.location_type for name, row in rows().items()}
    assert kinds == {
        "local/inputs": LocationType.SOURCE,
        "local/packed": LocationType.SOURCE,
        "local/other": LocationType.BUFFER,
    }
    with database.session_scope() as session:
        assert topology.find_site(session, "local").seen_topology == ""


def test_the_local_topology_can_be_shown_and_declared(tmp_path: Path) -> None:
    for name in ("work", "archive"):
        (tmp_path / name).mkdir()
    topology.ensure_local(working_directory=tmp_path / "work", destinations=[tmp_path / "archive"])
    with database.session_scope() as session:
        shown = topology.show(session)
    declaration = declared(tmp_path, topology.dump(shown))
    assert declaration == shown
    assert set(actions(topology.apply(declaration)).values()) == {"unchanged"}


@pytest.mark.parametrize(
    ("directory", "name"),
    [
        ("LTA", "lta"),
        ("My Archive!", "my-archive"),
        ("_x_", "x"),
        ("äöü", "archive"),
        ("..a", "a"),
        ("x" * 80, "x" * 63),
        ("packed", "packed-2"),
    ],
)
def test_a_destination_is_called_like_its_directory(tmp_path: Path, directory: str, name: str) -> None:
    (tmp_path / directory).mkdir()
    made = topology.ensure_local(working_directory=tmp_path / "work", destinations=[tmp_path / directory])
    assert made.destinations[0].name == name


def test_directories_of_the_same_name_get_numbers(tmp_path: Path) -> None:
    folders = [tmp_path / parent / ("n" * 63) for parent in "abc"]
    for folder in folders:
        folder.mkdir(parents=True)
    made = topology.ensure_local(working_directory=tmp_path, destinations=[*folders, folders[1]])
    names = [location.name for location in made.destinations]
    assert names == ["n" * 63, "n" * 61 + "-2", "n" * 61 + "-3", "n" * 61 + "-2"]


def test_the_same_directory_is_found_by_another_way_to_write_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "archive").mkdir()
    (tmp_path / "link").symlink_to("archive")
    monkeypatch.chdir(tmp_path)
    ways = [Path("archive"), tmp_path / "link", tmp_path / "x/../archive/."]
    made = topology.ensure_local(working_directory=tmp_path / "work", destinations=ways)
    assert len(set(map(str, made.destinations))) == 1


def test_a_destination_that_vanished_or_is_another_disk_is_unavailable(tmp_path: Path) -> None:
    archive = tmp_path / "archive"
    with pytest.raises(LocationUnavailableError, match="archive"):
        topology.ensure_local(working_directory=tmp_path, destinations=[archive])
    assert "local/archive" not in rows()
    archive.mkdir()
    topology.ensure_local(working_directory=tmp_path, destinations=[archive])
    archive.rename(tmp_path / "unmounted")
    archive.mkdir()
    with pytest.raises(LocationUnavailableError) as missing:
        topology.ensure_local(working_directory=tmp_path, destinations=[archive])
    assert (missing.value.condition, missing.value.location) == ("missing", "local/archive")
    (archive / volume.SENTINEL).write_text('{"volume_id": "other"}')
    with pytest.raises(LocationUnavailableError) as wrong:
        topology.ensure_local(working_directory=tmp_path, destinations=[archive])
    assert wrong.value.condition == "wrong_volume"


def test_a_copy_of_an_archive_is_not_taken_for_the_archive(tmp_path: Path) -> None:
    (tmp_path / "archive").mkdir()
    topology.ensure_local(working_directory=tmp_path, destinations=[tmp_path / "archive"])
    shutil.copytree(tmp_path / "archive", tmp_path / "copy")
    with pytest.raises(TopologyError, match="marked as that of data location 'local/archive'"):
        topology.ensure_local(working_directory=tmp_path, destinations=[tmp_path / "copy"])


def test_a_working_directory_that_was_moved_keeps_its_buffer(tmp_path: Path) -> None:
    before = topology.ensure_local(working_directory=tmp_path / "old", destinations=[])
    (tmp_path / "old").rename(tmp_path / "new")
    after = topology.ensure_local(working_directory=tmp_path / "new", destinations=[])
    assert after.packed.id == before.packed.id
    assert after.packed.options == {"path": f"{tmp_path}/new/packed"}


def test_a_destination_that_was_switched_off_is_used_again_when_asked_for(tmp_path: Path) -> None:
    (tmp_path / "archive").mkdir()
    topology.ensure_local(working_directory=tmp_path, destinations=[tmp_path / "archive"])
    with database.session_scope() as session:
        topology.find_location(session, "local/archive").active = False
    topology.ensure_local(working_directory=tmp_path, destinations=[tmp_path / "archive"])
    assert rows()["local/archive"].active


def test_directories_that_cannot_serve_are_refused_plainly(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="root of the file system"):
        topology.ensure_local(working_directory=tmp_path, destinations=[Path("/")])
    with pytest.raises(InputError, match="not UTF-8"):
        topology.ensure_local(working_directory=tmp_path, destinations=[Path(os.fsdecode(b"/\xff"))])
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match="cannot be made") as refused:
        topology.ensure_local(working_directory=tmp_path / "file", destinations=[])
    assert "WORKING_DIRECTORY" in refused.value.remedy


def test_a_declared_site_named_local_is_not_taken_over(tmp_path: Path) -> None:
    with database.session_scope() as session:
        factories.make_site(session, "here", "Local")
    with pytest.raises(TopologyError, match="'Local'"):
        topology.ensure_local(working_directory=tmp_path, destinations=[])


@pytest.mark.parametrize(("first", "second"), [("archive", "archive/inner"), ("archive/inner", "archive")])
def test_an_archive_inside_an_earlier_one_is_refused(tmp_path: Path, first: str, second: str) -> None:
    (tmp_path / "archive" / "inner").mkdir(parents=True)
    topology.ensure_local(working_directory=tmp_path / "work", destinations=[tmp_path / first])
    with pytest.raises(TopologyError, match="inside one another"):
        topology.ensure_local(working_directory=tmp_path / "work", destinations=[tmp_path / second])
    assert not (tmp_path / second / ".ccat_data_transfer.json").exists()


@pytest.mark.parametrize("destination", ["outer/buffer", "outer/buffer/inner", "outer"])
def test_an_archive_inside_a_declared_buffer_is_refused(tmp_path: Path, destination: str) -> None:
    (tmp_path / "outer" / "buffer" / "inner").mkdir(parents=True)
    with database.session_scope() as session:
        factories.make_location(session, tmp_path / "outer" / "buffer")
    with pytest.raises(TopologyError, match=r"data location 'cologne/buffer' at .* lie inside one another"):
        topology.ensure_local(working_directory=tmp_path / "work", destinations=[tmp_path / destination])
    assert not (tmp_path / destination / volume.SENTINEL).exists()


def test_a_buffer_of_another_machine_is_not_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "lta").mkdir()
    with database.session_scope() as session:
        factories.make_location(session, tmp_path).host = "elsewhere.example"
    assert topology.ensure_local(working_directory=tmp_path / "work", destinations=[tmp_path / "lta"]).destinations


def test_an_archive_that_was_off_for_a_moment_has_its_packages_looked_at_again(root: Path) -> None:
    site = '[[site]]\nname = "Cologne"\nshort_name = "cologne"\n'
    topology.apply(declared(root, site + disk()))
    with database.session_scope() as session:
        topology.find_site(session, "cologne").seen_topology = "as it is"
    topology.apply(declared(root, site + disk()))
    with database.session_scope() as session:
        assert topology.find_site(session, "cologne").seen_topology == "as it is"
    topology.apply(declared(root, site + disk(active="false")))
    topology.apply(declared(root, site + disk()))
    with database.session_scope() as session:
        assert topology.find_site(session, "cologne").seen_topology == ""
