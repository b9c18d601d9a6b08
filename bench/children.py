"""Child processes of a benchmark: started from this tree, watched, and ended by their id."""

import asyncio
import json
import os
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from baton.local.child import Child, ChildSpec, log_tail, start_child

START_TIMEOUT_S = 60.0
STOP_GRACE_S = 15.0
_POLL_S = 0.05
_ROOT = Path(__file__).parents[1]


class ChildFailed(Exception):  # noqa: N818  # the benchmark cannot go on
    """A child did not start or ended early; says what its log says."""


@asynccontextmanager
async def running_child(
    name: str,
    command: Sequence[str],
    directory: Path,
    environ: Mapping[str, str] | None = None,
) -> AsyncIterator[Child]:
    """Runs a program with its log in `directory`; leaving stops it."""
    spec = ChildSpec(
        name=name,
        command=tuple(command),
        environ={**os.environ, "PYTHONPATH": _python_path(), **(environ or {})},
        log=directory / f"{name}.log",
    )
    child = await start_child(spec)
    try:
        yield child
    finally:
        await child.stop(STOP_GRACE_S)


def _python_path() -> str:
    """Returns where children find modules: this tree first, then what this process was given."""
    return os.pathsep.join([str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])


def module(name: str, *arguments: str) -> list[str]:
    """Returns the command that runs a module of this tree."""
    return [sys.executable, "-m", name, *arguments]


async def wait_for_line(child: Child, start: str, timeout_s: float = START_TIMEOUT_S) -> str:
    """Returns the first line of the child's log that begins with `start`.

    Raises ChildFailed when the child ends first or the line does not come.
    """
    deadline_s = time.monotonic() + timeout_s
    while True:
        lines = child.spec.log.read_text(errors="replace").splitlines()
        for line in lines:
            if line.startswith(start):
                return line
        if child.exit_code is not None or time.monotonic() > deadline_s:
            raise ChildFailed(f"{child.spec.name} did not start:\n" + _tail(child))
        await asyncio.sleep(_POLL_S)


async def run_for_json(
    name: str, command: Sequence[str], directory: Path, environ: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Runs a program to its end and returns its last line, read as JSON."""
    async with running_child(name, command, directory, environ) as child:
        code = await child.wait()
        if code != 0:
            raise ChildFailed(f"{name} ended with {code}:\n" + _tail(child))
        value: dict[str, Any] = json.loads(log_tail(child.spec.log, 1)[0])
        return value


def _tail(child: Child) -> str:
    return "\n".join(log_tail(child.spec.log, 15))
