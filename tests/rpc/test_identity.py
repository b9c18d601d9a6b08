"""With certificates, only members of the fleet are talked to, and new ones need no restart."""

import asyncio
import ssl
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from baton.errors import StartupError
from baton.local.certs import CA_KEY_FILE, write_certificates
from baton.rpc.channels import open_channel
from baton.rpc.identity import CA_FILE, CERT_FILE, ENV_TLS_DIR, KEY_FILE
from baton.rpc.probe import check
from baton.rpc.server import ServiceServer

HOST = "127.0.0.1"


@pytest.fixture
def fleet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with certificates, which this process has as its identity."""
    write_certificates(tmp_path / "fleet")
    monkeypatch.setenv(ENV_TLS_DIR, str(tmp_path / "fleet"))
    return tmp_path / "fleet"


async def _health(address: str) -> grpc.StatusCode | int:
    async with open_channel(address) as channel:
        try:
            answer = await health_pb2_grpc.HealthStub(channel).Check(
                health_pb2.HealthCheckRequest(), timeout=5
            )
        except grpc.aio.AioRpcError as error:
            return error.code()
    return answer.status


async def test_members_of_a_fleet_reach_each_other(fleet: Path) -> None:
    server = ServiceServer(HOST, 0, [])
    await server.start()
    assert await _health(server.address) == health_pb2.HealthCheckResponse.SERVING
    await server.drain(0)


@pytest.mark.parametrize("stranger", ["no certificate", "another authority", "no TLS"])
async def test_strangers_are_refused_inside_the_mesh(
    fleet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stranger: str
) -> None:
    server = ServiceServer(HOST, 0, [])
    await server.start()
    other = tmp_path / "other"
    if stranger == "no certificate":
        other.mkdir()
        (other / CA_FILE).write_bytes((fleet / CA_FILE).read_bytes())
    elif stranger == "another authority":
        write_certificates(other)
        (other / CA_FILE).write_bytes((fleet / CA_FILE).read_bytes())
    monkeypatch.setenv(ENV_TLS_DIR, "" if stranger == "no TLS" else str(other))
    assert await _health(server.address) is grpc.StatusCode.UNAVAILABLE
    await server.drain(0)


async def test_a_server_that_another_authority_signed_is_not_trusted(
    fleet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_certificates(tmp_path / "other")
    monkeypatch.setenv(ENV_TLS_DIR, str(tmp_path / "other"))
    server = ServiceServer(HOST, 0, [], admits_strangers=True)
    await server.start()
    monkeypatch.setenv(ENV_TLS_DIR, str(fleet))
    assert await _health(server.address) is grpc.StatusCode.UNAVAILABLE
    await server.drain(0)


async def test_a_router_takes_clients_that_know_the_authority_only(
    fleet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = ServiceServer(HOST, 0, [], admits_strangers=True)
    await server.start()
    client = tmp_path / "client"
    client.mkdir()
    (client / CA_FILE).write_bytes((fleet / CA_FILE).read_bytes())
    monkeypatch.setenv(ENV_TLS_DIR, str(client))
    assert await _health(server.address) == health_pb2.HealthCheckResponse.SERVING
    await server.drain(0)


async def test_a_renewed_certificate_is_shown_without_a_restart(fleet: Path) -> None:
    server = ServiceServer(HOST, 0, [], admits_strangers=True)
    await server.start()

    def shown() -> str:
        return ssl.get_server_certificate((HOST, server.port))

    before = shown()
    assert write_certificates(fleet) is False
    after = shown()
    assert after != before
    assert after.strip() == (fleet / CERT_FILE).read_text().strip()
    assert await _health(server.address) == health_pb2.HealthCheckResponse.SERVING
    await server.drain(0)


async def test_the_health_probe_of_containers_shows_the_certificate(fleet: Path) -> None:
    server = ServiceServer(HOST, 0, [])
    await server.start()
    assert await asyncio.to_thread(check, server.address) == ""
    await server.drain(0)


async def test_a_missing_file_is_named_at_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ENV_TLS_DIR, str(tmp_path))
    with pytest.raises(StartupError, match=r"key\.pem cannot be read"):
        await ServiceServer(HOST, 0, []).start()
    with pytest.raises(StartupError, match=r"ca\.pem cannot be read"):
        open_channel("127.0.0.1:1")


def test_private_keys_are_readable_by_their_owner_only(fleet: Path) -> None:
    for name in (KEY_FILE, CA_KEY_FILE):
        assert (fleet / name).stat().st_mode & 0o077 == 0
