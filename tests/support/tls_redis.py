"""A Redis as careful people run it: TLS with client certificates, and a user who may do little."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from baton.local.certs import write_certificates
from baton.rpc.identity import CA_FILE, CERT_FILE, KEY_FILE
from baton.state.connect import connect
from tests.support.redis import running_redis

HOST = "127.0.0.1"
USER, PASSWORD = "baton", "a secret of the fleet"
RULES = ("on", f">{PASSWORD}", "~baton:v1:*", "+@all", "-@admin", "-@dangerous")
"""What docs/security.md tells people to give Baton's user."""

_CHUNK_BYTES = 64 * 1024


@asynccontextmanager
async def tls_redis(directory: Path) -> AsyncIterator[str]:
    """Yields the URL, credentials included, of a Redis that nobody enters otherwise."""
    write_certificates(directory, (HOST,))
    with running_redis(directory) as server:
        admin = connect(server.url)
        await admin.execute_command("ACL", "SETUSER", USER, *RULES)
        await admin.execute_command("ACL", "SETUSER", "default", "off")
        await admin.aclose()
        port = int(server.url.rpartition(":")[2].partition("/")[0])
        async with _terminated(directory, port) as tls_port:
            files = f"ssl_ca_certs={directory / CA_FILE}&ssl_certfile={directory / CERT_FILE}"
            query = f"{files}&ssl_keyfile={directory / KEY_FILE}"
            yield f"rediss://{USER}:{PASSWORD.replace(' ', '%20')}@{HOST}:{tls_port}/0?{query}"


@asynccontextmanager
async def _terminated(directory: Path, port: int) -> AsyncIterator[int]:
    """Puts TLS before a port: the server binary at hand was built without it."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(directory / CA_FILE))
    context.load_cert_chain(directory / CERT_FILE, directory / KEY_FILE)
    context.verify_mode = ssl.CERT_REQUIRED

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inner_reader, inner_writer = await asyncio.open_connection(HOST, port)
        await asyncio.gather(_pump(reader, inner_writer), _pump(inner_reader, writer))

    server = await asyncio.start_server(serve, HOST, 0, ssl=context)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(_CHUNK_BYTES):
            writer.write(data)
            await writer.drain()
    writer.close()
