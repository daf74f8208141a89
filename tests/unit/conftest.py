"""Unit tests have no network."""

import socket

import pytest


class NetworkUsedError(Exception):
    """A unit test tried to reach the network; nothing in the product catches this."""


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refuse every connection and datagram of Python's sockets except local (AF_UNIX) ones."""
    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, _guarded(name))


def _guarded(name: str) -> object:
    original = getattr(socket.socket, name)

    def guarded(self: socket.socket, *arguments: object) -> object:
        if self.family != socket.AF_UNIX:
            raise NetworkUsedError(f"{name}{arguments}")
        return original(self, *arguments)

    return guarded
