"""A real Redis server for tests."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from baton.state.embedded import EmbeddedRedis, start_embedded


class RedisServer:
    """A server that a test may stop and start again, empty, on the same port."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._server: EmbeddedRedis = start_embedded(directory)

    @property
    def url(self) -> str:
        return self._server.url

    def stop(self) -> None:
        self._server.stop()

    def start(self) -> None:
        self._server = start_embedded(self._directory, self._server.port)


@contextmanager
def running_redis(directory: Path) -> Iterator[RedisServer]:
    """Runs a Redis server on a private port, with its files in `directory`."""
    server = RedisServer(directory)
    try:
        yield server
    finally:
        server.stop()
