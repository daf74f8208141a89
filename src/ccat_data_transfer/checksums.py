"""Checksums as values, and several digests from one pass over the bytes.

The stored form is `algorithm:hex` in lower case.
"""

import hashlib
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol, Self

DEFAULT_ALGORITHM = "sha256"


class Hasher(Protocol):
    """What a digest in progress offers; `hashlib`'s objects already do."""

    def update(self, data: bytes | bytearray | memoryview, /) -> None:
        """Take in more bytes."""

    def hexdigest(self) -> str:
        """Digest of all bytes so far, in lower-case hexadecimal."""


class _Checksum32:
    """A 32-bit checksum of zlib with the interface of a hash; printed with 8 digits, big-endian."""

    def __init__(self, algorithm: str) -> None:
        self._function = zlib.crc32 if algorithm == "crc32" else zlib.adler32
        self._value = self._function(b"")

    def update(self, data: bytes | bytearray | memoryview, /) -> None:
        self._value = self._function(data, self._value)

    def hexdigest(self) -> str:
        return f"{self._value:08x}"


# Algorithms that producers of observatory data record, with the length of their hexadecimal digest.
ALGORITHMS: dict[str, int] = {
    "sha256": 64,
    "sha512": 128,
    "sha384": 96,
    "sha1": 40,
    "sha3_256": 64,
    "blake2b": 128,
    "md5": 32,
    "crc32": 8,
    "adler32": 8,
}


def new_hasher(algorithm: str) -> Hasher:
    """A fresh hasher; raises `ValueError` for an unknown algorithm."""
    if algorithm not in ALGORITHMS:
        raise ValueError(f"unknown checksum algorithm '{algorithm}'; known are {', '.join(ALGORITHMS)}")
    if algorithm in {"crc32", "adler32"}:
        return _Checksum32(algorithm)
    return hashlib.new(algorithm, usedforsecurity=False)


@dataclass(frozen=True, slots=True)
class Checksum:
    """An algorithm and its digest; two are equal only when both agree."""

    algorithm: str
    digest: str

    def __str__(self) -> str:
        return f"{self.algorithm}:{self.digest}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `algorithm:hex`; raises `ValueError` that says what is wrong with it."""
        algorithm, separator, digest = text.strip().partition(":")
        algorithm, digest = algorithm.lower(), digest.lower()
        if not separator:
            raise ValueError(f"checksum '{text}' is not of the form algorithm:hex")
        if algorithm not in ALGORITHMS:
            raise ValueError(f"checksum '{text}' has an unknown algorithm; known are {', '.join(ALGORITHMS)}")
        if len(digest) != ALGORITHMS[algorithm] or not set(digest) <= set("0123456789abcdef"):
            raise ValueError(f"checksum '{text}' is not {ALGORITHMS[algorithm]} hexadecimal digits long")
        return cls(algorithm, digest)


class Digests:
    """Several checksums of the same bytes, made in one pass."""

    def __init__(self, algorithms: Iterable[str] = (DEFAULT_ALGORITHM,)) -> None:
        self._hashers = {name: new_hasher(name) for name in dict.fromkeys(algorithms)}

    def update(self, data: bytes | bytearray | memoryview) -> None:
        """Take in more bytes."""
        for hasher in self._hashers.values():
            hasher.update(data)

    def result(self) -> dict[str, Checksum]:
        """The checksums so far, by algorithm."""
        return {name: Checksum(name, hasher.hexdigest()) for name, hasher in self._hashers.items()}
