"""`topology` and `location`: declared, shown, checked, resumed."""

import threading

import pytest
from tests.unit.cli.conftest import Program

from ccat_data_transfer import database, models, storage
from ccat_data_transfer.cli import location as commands
from ccat_data_transfer.locations import LocationType
from ccat_data_transfer.states import PauseReason
from ccat_data_transfer.storage.base import Health


def _pause(reason: PauseReason = PauseReason.FULL) -> None:
    with database.session_scope() as session:
        row = session.query(models.DataLocation).filter_by(name="lta").one()
        row.paused_until = database.utcnow(600)
        row.pause_reason, row.pause_message = reason, "it was full"


def test_applying_makes_the_database_and_says_what_changed(nothing: Program) -> None:
    (nothing.folder / "t.toml").write_text('[[site]]\nname = "C"\nshort_name = "c"\n')
    assert nothing.succeed("topology", "apply", "t.toml").out == "site 'c' created\n"
    assert nothing.succeed("topology", "apply", "t.toml", "--json").json() == [
        {"what": "site", "name": "c", "action": "unchanged", "details": []}
    ]


def test_what_is_shown_can_be_applied(cologne: Program) -> None:
    shown = cologne.succeed("topology", "show").out
    (cologne.folder / "shown.toml").write_text(shown)
    changes = cologne.succeed("topology", "apply", "shown.toml", "--json").json()
    assert {change["action"] for change in changes} == {"unchanged"}
    (site,) = cologne.succeed("topology", "show", "--json").json()["sites"]
    assert [place["name"] for place in site["data_locations"]] == ["buffer", "lta"]


@pytest.mark.parametrize(
    ("text", "code"), [(None, 2), ("[[site]]\nname = 3\n", 3), ("not toml", 3), ("", 3), ("\udcff", 3)]
)
def test_a_bad_topology_file_changes_nothing(nothing: Program, text: str | None, code: int) -> None:
    if text is not None:
        (nothing.folder / "t.toml").write_bytes(text.encode("utf-8", "surrogateescape"))
    before = nothing.files
    result = nothing("topology", "apply", "t.toml")
    assert result.code == code
    assert result.err.startswith("error: topology file 't.toml'")
    assert nothing.files == before


def test_locations_are_listed_with_their_pause(cologne: Program) -> None:
    _pause()
    lta = cologne.succeed("location", "list", "--json").json()[1]
    assert (lta["site"], lta["location"], lta["location_type"]) == ("cologne", "lta", "long_term_archive")
    assert (lta["paused"], lta["pause_reason"]) == (True, "full")
    assert lta["paused_until"].endswith("Z")
    assert lta["queue"] == "cologne_lta_long_term_archive_transfer"
    assert cologne.succeed("location", "show", "cologne/lta", "--json").json() == lta
    assert "cologne/lta\tlong_term_archive\tdisk\t0\tyes\tfull\t" in cologne.succeed("location", "list").out
    assert "pause_message" in cologne.succeed("location", "show", "cologne/lta").out


@pytest.mark.parametrize("name", ["cologne/no", "no/lta", "lta", "", "a/b/c"])
@pytest.mark.parametrize("command", ["show", "check", "resume"])
def test_an_unknown_location_lists_those_there_are(cologne: Program, command: str, name: str) -> None:
    result = cologne("location", command, name)
    assert result.code == 2
    assert "hint: " in result.err


def test_an_unknown_site_lists_those_there_are(cologne: Program) -> None:
    for command in (("location", "list"), ("location", "check"), ("status",), ("queues",), ("package", "list")):
        result = cologne(*command, "--site", "nowhere")
        assert result.code == 2
        assert "cologne (University of Cologne)" in result.err


def test_a_site_is_known_by_its_name_too(cologne: Program) -> None:
    assert len(cologne.succeed("location", "list", "--site", "University of Cologne", "--json").json()) == 2


def test_healthy_places_check_well(cologne: Program) -> None:
    found = cologne.succeed("location", "check", "--json").json()
    assert [each["condition"] for each in found] == ["well", "well"]
    assert all(each["free_bytes"] > 0 and each["total_bytes"] > 0 and each["enrolled"] for each in found)
    assert all(each["expected_evidence"] for each in found)
    assert cologne.succeed("location", "check", "cologne/lta").err == ""


def test_a_place_that_is_not_mounted_exits_with_6(cologne: Program) -> None:
    (cologne.folder / "lta").rename(cologne.folder / "elsewhere")
    (cologne.folder / "lta").mkdir()
    result = cologne("location", "check")
    assert result.code == 6
    assert "cologne/lta\tmissing\t" in result.out
    assert "cologne/buffer\twell\t" in result.out
    assert "its disk is not mounted there" in result.err


def test_an_inactive_place_may_be_unwell(cologne: Program) -> None:
    with database.session_scope() as session:
        session.query(models.DataLocation).filter_by(name="lta").one().active = False
    (cologne.folder / "lta").rename(cologne.folder / "elsewhere")
    assert len(cologne.succeed("location", "check", "--json").json()) == 1
    result = cologne.succeed("location", "check", "cologne/lta")
    assert "missing" in result.out
    assert "note: " in result.err


def test_a_place_of_another_machine_is_not_called_well(cologne: Program) -> None:
    with database.session_scope() as session:
        session.query(models.DiskDataLocation).filter_by(name="lta").one().host = "elsewhere"
    result = cologne("location", "check")
    assert result.code == 1
    assert "cologne/lta\tnot checked\t" in result.out


def test_a_place_that_does_not_answer_is_told_as_unreachable(cologne: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()

    def hangs(_place: object) -> object:
        release.wait(60)
        raise AssertionError("nobody waits for this")

    monkeypatch.setattr(commands, "ANSWER_SECONDS", 0.01)
    monkeypatch.setattr(commands, "_checkup", hangs)
    monkeypatch.setattr(threading, "excepthook", lambda _args: None)
    result = cologne("location", "check", "cologne/lta")
    release.set()
    assert result.code == 6
    assert "did not answer within" in result.err


def test_a_place_that_is_well_again_says_how_to_go_on(cologne: Program) -> None:
    _pause()
    result = cologne.succeed("location", "check")
    assert "'cologne/lta' is well again and paused until" in result.err
    assert cologne.succeed("location", "resume", "cologne/lta").out == "'cologne/lta' takes work\n"
    assert cologne.succeed("location", "resume", "cologne/lta").out == "'cologne/lta' was not paused\n"
    assert cologne.succeed("location", "check").err == ""


def test_what_is_only_read_need_not_be_writable(cologne: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    with database.session_scope() as session:
        session.query(models.DataLocation).filter_by(name="buffer").one().location_type = LocationType.SOURCE
    asked = {}

    class Backend:
        def __init__(self, location: object) -> None:
            self.location = location

        def check(self, *, writable: bool) -> Health:
            asked[str(self.location)] = writable
            return Health(None, "well")

    monkeypatch.setattr(storage, "open_storage", Backend)
    cologne.succeed("location", "check")
    assert asked == {"cologne/buffer": False, "cologne/lta": True}
