"""A TCP line that a test can cut: what a partition or a killed process looks like to peers."""

import asyncio
import contextlib


class Cable:
    """Forwards connections to a server until it is cut; the server lives on behind it."""

    def __init__(self) -> None:
        self.address = ""
        self._target: asyncio.Future[tuple[str, int]] = asyncio.get_running_loop().create_future()
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()

    async def lay(self) -> None:
        """Starts listening on a free port; connections wait for `plug_in`."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        host, port = self._server.sockets[0].getsockname()
        self.address = f"{host}:{port}"

    def plug_in(self, target: str) -> None:
        """Names the server behind the cable; again, the one that took its place."""
        host, _, port = target.rpartition(":")
        if self._target.done():
            self._target = asyncio.get_running_loop().create_future()
        self._target.set_result((host, int(port)))

    async def drop(self) -> None:
        """Breaks all connections; new ones are taken as before."""
        connections = list(self._connections)
        for connection in connections:
            connection.cancel()
        if connections:
            await asyncio.wait(connections)

    async def cut(self) -> None:
        """Breaks all connections and refuses new ones."""
        if self._server is None:
            return
        self._server.close()
        await self.drop()
        await self._server.wait_closed()
        self._server = None

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            far_reader, far_writer = await asyncio.open_connection(
                *await asyncio.shield(self._target)
            )
            try:
                async with asyncio.TaskGroup() as pumps:
                    pumps.create_task(_pump(reader, far_writer))
                    pumps.create_task(_pump(far_reader, writer))
            finally:
                far_writer.transport.abort()
        except (asyncio.CancelledError, ConnectionRefusedError):
            pass  # asyncio's streams log these as errors; a dead server refuses
        finally:
            self._connections.discard(task)
            writer.transport.abort()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    with contextlib.suppress(OSError):  # ENOTCONN when the other side reset the connection
        if writer.can_write_eof():
            writer.write_eof()
