"""A TCP proxy that stands before one service and turns into a bad network on demand."""

import asyncio
import enum
from contextlib import suppress

_CHUNK_BYTES = 64 * 1024
_LOOPBACK = "127.0.0.1"


class Network(enum.Enum):
    """How the way to the service is at the moment."""

    GOOD = "good"
    SILENT = "silent"
    """A partition: connections stay, nothing arrives."""
    CUT = "cut"
    """Connections break and new ones are refused at once."""
    SLOW = "slow"
    """Each piece arrives late."""
    NARROW = "narrow"
    """Few bytes a second."""


class FaultyProxy:
    """Listens on a port of `host` and forwards to the target as its `network` allows."""

    def __init__(
        self, target_port: int, target_host: str = _LOOPBACK, host: str = _LOOPBACK
    ) -> None:
        self._target = target_host, target_port
        self._host = host
        self.port = 0
        self.delay_s = 0.05
        self.bytes_per_s = 200_000.0
        self._network = Network.GOOD
        self._is_good = asyncio.Event()
        self._is_good.set()
        self._pipes: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Begins to listen."""
        self._server = await asyncio.start_server(self._accept, self._host, 0, limit=_CHUNK_BYTES)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Breaks every connection and stops listening."""
        assert self._server is not None
        self._server.close()
        self._break_all()
        await asyncio.gather(*self._pipes, return_exceptions=True)

    def turn(self, network: Network) -> None:
        """Changes the way's state; CUT breaks what is connected."""
        self._network = network
        if network is Network.SILENT:
            self._is_good.clear()
        else:
            self._is_good.set()
        if network is Network.CUT:
            self._break_all()

    def _break_all(self) -> None:
        for pipe in self._pipes:
            pipe.cancel()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._pipes.add(task)
        try:
            if self._network is not Network.CUT:
                await self._serve(reader, writer)
        except (OSError, asyncio.CancelledError):
            pass  # a broken connection is what both ends are shown
        finally:
            self._pipes.discard(task)
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection(*self._target)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pump(reader, far_writer))
                group.create_task(self._pump(far_reader, writer))
        except* OSError:
            pass
        finally:
            far_writer.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(_CHUNK_BYTES):
            if self._network is Network.SLOW:
                await asyncio.sleep(self.delay_s)
            elif self._network is Network.NARROW:
                await asyncio.sleep(len(data) / self.bytes_per_s)
            await self._is_good.wait()
            writer.write(data)
            await writer.drain()
        with suppress(OSError):
            writer.write_eof()
