"""Gives a service one life after another without paying for its imports each time.

    python -m tests.chaos.nursery SOCKET ROLE ARGUMENT...

The process imports what its service needs and waits on the socket. For each connection it forks;
the fork runs the service's `main` with the arguments, in a session of its own, and its process id
is written back. Nothing but imports happened before the fork: no thread, no model, no connection.
A cold start of a worker takes 6 of its 8 CPU seconds for imports, and a campaign has hundreds.
"""

import asyncio
import ctypes
import gc
import importlib
import os
import random
import signal
import socket
import sys
from contextlib import suppress
from pathlib import Path

from baton.local.roles import Role

_PR_SET_PDEATHSIG = 1
_OF_WORKERS = ("torch", "transformers", "transformers.models.llama.modeling_llama")


class Life:
    """One forked process, with what a fleet asks of a `baton.local.child.Child`."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._ended = asyncio.Event()
        try:
            self._handle = os.pidfd_open(pid)
        except ProcessLookupError:
            self._ended.set()
        else:
            asyncio.get_running_loop().add_reader(self._handle, self._end)

    @property
    def exit_code(self) -> int | None:
        """None while it runs; how it ended is known to its nursery only."""
        return 0 if self._ended.is_set() else None

    async def wait(self) -> int:
        """Returns once it ended."""
        await self._ended.wait()
        return 0

    def signal(self, number: signal.Signals) -> None:
        """Sends a signal; does nothing when it already ended."""
        with suppress(ProcessLookupError):
            if self.exit_code is None:
                signal.pidfd_send_signal(self._handle, number)

    def kill(self) -> None:
        """Kills it and whatever it started itself."""
        with suppress(ProcessLookupError):
            if self.exit_code is None:
                os.killpg(self.pid, signal.SIGKILL)

    def _end(self) -> None:
        asyncio.get_running_loop().remove_reader(self._handle)
        os.close(self._handle)
        self._ended.set()


async def birth(path: Path) -> Life:
    """Asks the nursery at `path` for the next life. Raises OSError while it does not listen."""
    reader, writer = await asyncio.open_unix_connection(str(path))
    pid = await reader.readline()
    writer.close()
    return Life(int(pid))


def main() -> None:
    """Forks for each connection, for ever."""
    path, role = sys.argv[1], Role(sys.argv[2])
    service = importlib.import_module(role.module)
    for name in _OF_WORKERS if role.is_worker else ():
        importlib.import_module(name)
    gc.freeze()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel buries the children
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(path)
    listening.listen()
    while True:
        connection, _ = listening.accept()
        nursery = os.getpid()
        pid = os.fork()
        if not pid:
            listening.close()
            connection.close()
            _begin(nursery, [role.module, *sys.argv[3:]])
            service.main()
            return
        connection.sendall(f"{pid}\n".encode())
        connection.close()


def _begin(nursery: int, argv: list[str]) -> None:
    """Makes the fork what a fresh process would be; the kernel ends it with its nursery."""
    os.setsid()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != nursery:
        sys.exit("the nursery died before its child began")
    random.seed()
    sys.argv = argv


if __name__ == "__main__":
    main()
