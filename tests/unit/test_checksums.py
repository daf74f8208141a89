"""Checksums as values, and several digests from one pass."""

import hashlib
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ccat_data_transfer.checksums import ALGORITHMS, DEFAULT_ALGORITHM, Checksum, Digests, new_hasher

EMPTY = {
    "sha256": "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "sha1": "da39a3ee5e6b4b0d3255bfef95601890afd80709",
    "md5": "d41d8cd98f00b204e9800998ecf8427e",
    "crc32": "00000000",
    "adler32": "00000001",
}
# The check value of each algorithm's own documents.
CHECK = {"crc32": "cbf43926", "adler32": "091e01de", "md5": "25f9e794323b453885f5181f1b624d0b"}


def test_sha256_is_the_default() -> None:
    assert DEFAULT_ALGORITHM == "sha256"
    assert list(Digests().result()) == ["sha256"]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_algorithm_yields_a_checksum_that_can_be_read_back(algorithm: str) -> None:
    digests = Digests([algorithm])
    digests.update(b"raw data")
    checksum = digests.result()[algorithm]
    assert len(checksum.digest) == ALGORITHMS[algorithm]
    assert Checksum.parse(str(checksum)) == checksum


@pytest.mark.parametrize(("algorithm", "digest"), EMPTY.items())
def test_the_digest_of_nothing_is_the_known_one(algorithm: str, digest: str) -> None:
    assert Digests([algorithm]).result() == {algorithm: Checksum(algorithm, digest)}


@pytest.mark.parametrize(("algorithm", "digest"), CHECK.items())
def test_the_digest_of_the_check_string_is_the_known_one(algorithm: str, digest: str) -> None:
    digests = Digests([algorithm])
    digests.update(b"123456789")
    assert digests.result()[algorithm].digest == digest


@given(chunks=st.lists(st.binary(max_size=100)))
def test_how_the_bytes_are_cut_makes_no_difference(chunks: list[bytes]) -> None:
    digests = Digests(ALGORITHMS)
    for chunk in chunks:
        digests.update(memoryview(chunk))
    whole = b"".join(chunks)
    result = digests.result()
    assert set(result) == set(ALGORITHMS)
    assert result["sha512"].digest == hashlib.sha512(whole).hexdigest()
    assert int(result["crc32"].digest, 16) == zlib.crc32(whole)
    assert int(result["adler32"].digest, 16) == zlib.adler32(whole)


def test_an_algorithm_that_is_asked_for_twice_is_computed_once() -> None:
    assert list(Digests(["md5", "sha256", "md5"]).result()) == ["md5", "sha256"]


def test_an_unknown_algorithm_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"unknown checksum algorithm 'sha0'.*sha256"):
        new_hasher("sha0")


def test_a_checksum_is_read_in_any_case_and_written_in_one() -> None:
    assert str(Checksum.parse("  MD5:" + "AB" * 16 + "\n")) == "md5:" + "ab" * 16


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "not of the form algorithm:hex"),
        ("ab" * 32, "not of the form algorithm:hex"),
        (":" + "ab" * 32, "unknown algorithm"),
        ("sha0:" + "ab" * 32, "unknown algorithm"),
        ("sha256:", "not 64 hexadecimal digits"),
        ("sha256:" + "ab" * 31, "not 64 hexadecimal digits"),
        ("sha256:" + "ab" * 33, "not 64 hexadecimal digits"),
        ("sha256:" + "xy" * 32, "not 64 hexadecimal digits"),
        ("sha256:" + "٣" * 64, "not 64 hexadecimal digits"),
        ("sha256: " + "a" * 63, "not 64 hexadecimal digits"),
        ("sha256:sha256:" + "ab" * 32, "not 64 hexadecimal digits"),
    ],
)
def test_what_is_no_checksum_is_refused_with_the_reason(text: str, what: str) -> None:
    with pytest.raises(ValueError, match=what):
        Checksum.parse(text)


@given(text=st.text())
def test_whatever_is_read_as_a_checksum_is_one_and_the_rest_raises_nothing_but_valueerror(text: str) -> None:
    try:
        checksum = Checksum.parse(text)
    except ValueError:
        return
    assert len(bytes.fromhex(checksum.digest)) * 2 == ALGORITHMS[checksum.algorithm]


def test_checksums_of_different_algorithms_are_never_equal() -> None:
    assert Checksum("sha256", "a" * 64) != Checksum("sha3_256", "a" * 64)
