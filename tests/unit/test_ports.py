"""Ports for those who have to name one before they listen."""

import socket
from pathlib import Path

import pytest

from baton import ports

_GIVEN_TO_CONNECTIONS = Path("/proc/sys/net/ipv4/ip_local_port_range")


def test_port_in_use_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    free = ports.free_port("127.0.0.1")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", ports.free_port("127.0.0.1")))
        used = taken.getsockname()[1]
        offered = iter([used, used, free])
        monkeypatch.setattr(ports.secrets, "choice", lambda _: next(offered))
        assert ports.free_port("127.0.0.1") == free


def test_foreign_host_is_an_error_not_a_search_without_end() -> None:
    with pytest.raises(OSError, match="assign"):
        ports.free_port("192.0.2.1")


@pytest.mark.skipif(not _GIVEN_TO_CONNECTIONS.exists(), reason="Linux says which")
def test_port_is_none_that_an_outgoing_connection_could_take_meanwhile() -> None:
    first, _ = map(int, _GIVEN_TO_CONNECTIONS.read_text(encoding="ascii").split())
    assert ports.free_port("127.0.0.1") < first
