"""The connection to Redis: explicit timeouts, few retries, and a clear word when it is missing."""

import asyncio
from collections.abc import Iterable
from urllib.parse import urlsplit, urlunsplit

from redis.asyncio import (
    Connection,
    ConnectionPool,
    Redis,
    SSLConnection,
    UnixDomainSocketConnection,
)
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError

from baton.errors import StartupError

REDIS_ERRORS = (RedisError, OSError)
"""What a call on the client raises when Redis is away or unwell."""

SOCKET_TIMEOUT_S = 2.0
"""Longest wait for one reply; every blocking read asks for less."""

CONNECT_TIMEOUT_S = 1.0
RETRIES = 2


class _KeepsPromises(AbstractConnection):
    """Raises what callers wait for, where the client would raise something else or nothing.

    The client writes under `asyncio.wait_for`, which before Python 3.12 swallows a cancellation
    that meets a finished write (https://github.com/python/cpython/issues/86296): a loop around
    calls to Redis would then never end. And uvloop answers a write to a transport that just closed
    with RuntimeError, which no caller takes for a lost connection.
    """

    async def send_packed_command(
        self, command: bytes | str | Iterable[bytes], check_health: bool = True
    ) -> None:
        task = asyncio.current_task()
        before = task.cancelling() if task else 0
        try:
            await super().send_packed_command(command, check_health)
        except RuntimeError as error:
            await self.disconnect(nowait=True)
            raise RedisConnectionError(f"the connection closed: {error}") from error
        if task and task.cancelling() > before:
            await self.disconnect(nowait=True)
            raise asyncio.CancelledError


class _TcpConnection(_KeepsPromises, Connection):
    pass


class _TlsConnection(_KeepsPromises, SSLConnection):
    pass


class _UnixConnection(_KeepsPromises, UnixDomainSocketConnection):
    pass


def connect(url: str) -> Redis:
    """Returns a client of the Redis at `url`; connections open on first use.

    A call takes at most a few seconds and then raises one of REDIS_ERRORS. The caller closes the
    client with `aclose`. Raises StartupError when the URL is not one.
    """
    try:
        pool = ConnectionPool.from_url(
            url,
            socket_timeout=SOCKET_TIMEOUT_S,
            socket_connect_timeout=CONNECT_TIMEOUT_S,
            retry=Retry(ExponentialBackoff(cap=0.2, base=0.02), RETRIES),
            protocol=2,
        )
    except ValueError as error:
        raise StartupError(
            f"{without_password(url)!r} is not a Redis URL ({error}); "
            "set REDIS_URL to one such as redis://localhost:6379/0"
        ) from error
    if issubclass(pool.connection_class, SSLConnection):
        pool.connection_class = _TlsConnection
    elif issubclass(pool.connection_class, UnixDomainSocketConnection):
        pool.connection_class = _UnixConnection
    else:
        pool.connection_class = _TcpConnection
    return Redis.from_pool(pool)


async def ping_or_fail(redis: Redis, url: str, timeout_s: float = 5.0) -> None:
    """Returns once Redis answered. Raises StartupError that says where it was looked for."""
    try:
        async with asyncio.timeout(timeout_s):
            await redis.ping()
    except (*REDIS_ERRORS, TimeoutError) as error:
        raise StartupError(
            f"Redis at {without_password(url)} does not answer ({error or 'timed out'}). "
            "Start it there, or set REDIS_URL to one that runs."
        ) from error


def without_password(url: str) -> str:
    """Returns the URL without credentials, fit for messages and logs."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit((parts.scheme, host, parts.path, "", ""))
