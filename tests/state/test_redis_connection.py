"""A connection that broke unnoticed costs a retry and never an error of another kind."""

import asyncio
from pathlib import Path

import uvloop

from baton.state.connect import connect
from tests.support.redis import running_redis


def test_a_transport_closed_under_the_client_is_a_lost_connection(tmp_path: Path) -> None:
    async def talk(url: str) -> bytes | None:
        redis = connect(url)
        await redis.set("key", "value")
        (connection,) = redis.connection_pool._available_connections
        connection._writer.transport.abort()
        found: bytes | None = await redis.get("key")
        await redis.aclose()
        return found

    with (
        running_redis(tmp_path) as server,
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
    ):
        assert runner.run(talk(server.url)) == b"value"
