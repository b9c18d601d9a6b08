"""One child process: its own session, its own log file, and no life beyond its parent's."""

import asyncio
import os
import signal
import time
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from baton import launch


@dataclass(frozen=True, slots=True)
class ChildSpec:
    """What to run. `command` begins with the path of a program; `environ` is all it sees."""

    name: str
    command: tuple[str, ...]
    environ: Mapping[str, str]
    log: Path


class Child:
    """A started process. Ctrl-C in the terminal does not reach it: its parent ends it in order."""

    def __init__(self, spec: ChildSpec, process: asyncio.subprocess.Process) -> None:
        self.spec = spec
        self.started_at_s = time.time()
        self._process = process

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """How it ended (negative: by that signal), or None while it runs."""
        return self._process.returncode

    async def wait(self) -> int:
        """Returns its exit code once it ended."""
        return await self._process.wait()

    def signal(self, number: signal.Signals) -> None:
        """Sends a signal; does nothing when it already ended."""
        # It may end between the question and the deed.
        with suppress(ProcessLookupError):
            if self.exit_code is None:
                self._process.send_signal(number)

    def kill(self) -> None:
        """Kills it and whatever it started itself."""
        with suppress(ProcessLookupError):
            if self.exit_code is None:
                os.killpg(self.pid, signal.SIGKILL)

    async def stop(self, grace_s: float) -> bool:
        """Asks it to end, kills it after `grace_s`. Returns whether it ended by itself."""
        self.signal(signal.SIGTERM)
        self.signal(signal.SIGCONT)  # a stopped process would not hear the first one
        try:
            async with asyncio.timeout(grace_s):
                await self.wait()
        except TimeoutError:
            self.kill()
            await self.wait()
            return False
        return True


async def start_child(spec: ChildSpec) -> Child:
    """Starts a process whose output is appended to its log file.

    Call it from a thread that lives on: the kernel ends the child with it (see baton/launch.py).
    """
    spec.log.parent.mkdir(parents=True, exist_ok=True)
    with spec.log.open("ab") as log:
        process = await asyncio.create_subprocess_exec(
            *launch.command(*spec.command),
            env=dict(spec.environ),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    return Child(spec, process)


def log_tail(log: Path, lines: int) -> list[str]:
    """Returns the last lines of a log file; none when there is no such file."""
    if not log.exists():
        return []
    with log.open(errors="replace") as file:
        return [line.rstrip("\n") for line in deque(file, maxlen=lines)]
