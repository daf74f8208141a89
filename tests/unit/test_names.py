"""Which names are safe to store."""

import unicodedata
from pathlib import Path, PurePosixPath

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ccat_data_transfer import names
from ccat_data_transfer.exceptions import BadNameError

HARMLESS = [
    "obs-0421.tar",
    "a",
    "CCAT_2026-01-01T00:00:00.tar",
    "a+b=c,d@e%f#g~h(i).tar",
    "with inner spaces.tar",
    "Zürich-Überflug.tar",
    "観測.tar",
    "x" * 200,
    "ü" * 100,
    "a..b",
    "a.-~",
]
HOSTILE = [
    ("", "empty"),
    (".", "begins with"),
    ("..", "begins with"),
    (".hidden.tar", "begins with"),
    (".incoming", "begins with"),
    ("-rf", "begins with"),
    ("~root", "begins with"),
    (" a", "begins or ends"),
    ("a ", "begins or ends"),
    ("a.", "begins or ends"),
    ("/etc/passwd", "separator"),
    ("../a", "begins with"),
    ("a/../../b", "separator"),
    ("a/b", "separator"),
    ("a\\b", "separator"),
    ("a\0b", "control"),
    ("a\nb", "control"),
    ("a\rb", "control"),
    ("a\tb", "control"),
    ("a\x1b[2Jb", "control"),
    ("a\x7fb", "control"),
    ("a\x85b", "control"),
    ("a'b", "quote"),
    ('a"b', "quote"),
    ("a`id`b", "quote"),
    ("a$(id)", "quote"),
    ("a;b", "quote"),
    ("a|b", "quote"),
    ("a&b", "quote"),
    ("a<b", "quote"),
    ("a*", "wildcard"),
    ("a?", "wildcard"),
    ("a[b]", "wildcard"),
    ("a{b}", "wildcard"),
    ("a!b", "wildcard"),
    ("a\u202egpj.tar", "control"),  # right-to-left override
    ("a\u200bb", "control"),  # zero-width space
    ("a\u2028b", "control"),  # line separator
    ("a\ufeffb", "control"),
    ("a\udcffb", "UTF-8"),
    ("a\ud800b", "UTF-8"),
    ("u\u0308.tar", "normal form"),
    ("x" * 201, "longer than 200 bytes"),
    ("ü" * 101, "longer than 200 bytes"),
]


@pytest.mark.parametrize("name", HARMLESS)
def test_a_harmless_package_name_is_taken_as_it_is(name: str) -> None:
    assert names.check_package_name(name) == name


@pytest.mark.parametrize(("name", "fault"), HOSTILE)
def test_a_hostile_package_name_is_refused_with_the_reason(name: str, fault: str) -> None:
    with pytest.raises(BadNameError, match=fault) as refused:
        names.check_package_name(name)
    assert str(refused.value).isprintable()
    assert refused.value.remedy


@given(name=st.text(max_size=80))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=300)
def test_a_name_that_is_taken_names_the_same_file_again(tmp_path: Path, name: str) -> None:
    try:
        names.check_package_name(name)
    except BadNameError:
        return
    file = tmp_path / name
    file.touch()
    assert file.parent == tmp_path
    assert [entry.name for entry in tmp_path.iterdir()] == [name]
    file.unlink()


@given(name=st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=60))
@settings(max_examples=300)
def test_the_key_of_a_package_stays_below_the_root_and_ends_with_its_name(name: str) -> None:
    try:
        names.check_package_name(name)
    except BadNameError:
        return
    key = PurePosixPath(names.object_key(name))
    assert not key.is_absolute()
    assert len(key.parts) == 2
    assert ".." not in key.parts
    assert key.name == name
    assert names.check_member_path(str(key)) == str(key)


_stems = st.sampled_from(["a", "b", "a.tar", "a.sha256", "a.json", "a.tar.tar", "A"])
_endings = st.sampled_from(["", ".tar", ".sha256", ".json", ".tar.sha256", ".tar.json", ".sha256.tar"])


@given(first=st.builds(str.__add__, _stems, _endings), second=st.builds(str.__add__, _stems, _endings))
def test_what_is_stored_for_two_packages_never_meets(first: str, second: str) -> None:
    def stored(name: str) -> set[str]:
        return {names.object_key(name), names.manifest_key(name), names.sidecar_key(name)}

    assert len(stored(first)) == 3
    if first != second:
        assert not stored(first) & stored(second)
        folders = {PurePosixPath(key).parent for key in stored(first)}
        assert not {PurePosixPath(key) for key in stored(second)} & folders


def test_documents_lie_beside_their_package() -> None:
    assert names.object_key("obs.tar") == "obs/obs.tar"
    assert names.manifest_key("obs.tar") == "obs/obs.tar.sha256"
    assert names.sidecar_key("obs.tar") == "obs/obs.tar.json"


@pytest.mark.parametrize(
    ("one", "other"),
    [("OBS.tar", "obs.TAR"), ("Straße", "STRASSE"), ("\u00fc", "u\u0308"), ("\u212b", "\u00e5")],
)
def test_names_that_some_file_system_takes_for_one_fold_alike(one: str, other: str) -> None:
    assert names.fold(one) == names.fold(other)


def test_names_that_no_file_system_confuses_fold_apart() -> None:
    assert names.fold("obs-1.tar") != names.fold("obs-2.tar")


@given(name=st.text())
def test_folding_twice_changes_nothing(name: str) -> None:
    folded = names.fold(name)
    assert unicodedata.is_normalized("NFC", folded)
    assert names.fold(folded) == folded


@pytest.mark.parametrize("path", ["a", "a/b/c.fits", ".hidden", "a/.b", "it's $HOME;*", "x" * 255, "a b/ c"])
def test_what_instruments_write_may_be_in_a_package(path: str) -> None:
    assert names.check_member_path(path) == path


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/",
        "/etc/passwd",
        "a//b",
        "a/",
        "./a",
        "../a",
        "a/../b",
        "a/..",
        "a\0",
        "a\nb",
        "a\\b",
        "-rf",
        "a/-rf",
        "a\udc80",
        "a\ud800",  # noqa: PT014 - another one
        "x" * 256,
        "a/" + "ü" * 128,
        "u\u0308",
        "a\u202eb",
    ],
)
def test_what_could_harm_when_it_is_unpacked_is_refused(path: str) -> None:
    with pytest.raises(BadNameError) as refused:
        names.check_member_path(path)
    assert str(refused.value).isprintable()


@given(path=st.text(st.characters(), max_size=30))
def test_a_member_path_is_returned_or_refused_and_nothing_else_is_raised(path: str) -> None:
    try:
        assert names.check_member_path(path) == path
    except BadNameError:
        return
    assert not PurePosixPath(path).is_absolute()
    assert ".." not in path.split("/")


@pytest.mark.parametrize("path", ["a", "Raw Data/.x/-y'z", "a/b", "ü", "~/a"])
def test_a_copy_may_lie_anywhere_below_its_root(path: str) -> None:
    assert names.check_copy_path(path) == path


@pytest.mark.parametrize("path", ["", "/a", "a//b", "a/", ".", "..", "a/../../b", "./a", "a\0b"])
def test_a_copy_may_not_lie_outside_of_its_root(path: str) -> None:
    with pytest.raises(BadNameError, match="not a plain path"):
        names.check_copy_path(path)


@pytest.mark.parametrize("name", ["a", "lta", "cologne-2", "a_b", "0", "a" * 63])
def test_a_lower_case_identifier_may_become_part_of_a_queue(name: str) -> None:
    assert names.check_identifier(name, "site") == name


@pytest.mark.parametrize("name", ["", "A", "a.b", "-a", "a-", "_a", "a b", "a/b", "ü", "a\n", "a" * 64, "a,b"])
def test_what_would_spoil_the_name_of_a_queue_is_refused(name: str) -> None:
    with pytest.raises(BadNameError, match="data location"):
        names.check_identifier(name, "data location")


def test_a_name_is_shown_without_what_a_terminal_would_act_on() -> None:
    assert names.shown("a\x1b[31m\n\udc80\u202e") == "a\\x1b[31m\\n\\udc80\\u202e"


def test_a_giant_name_is_cut_when_it_is_shown() -> None:
    assert len(names.shown("x" * 10_000)) == 201
