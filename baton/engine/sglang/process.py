"""The worker's side of its engine process: started, spoken to, seen dying."""

import asyncio
import itertools
import logging
import os
import signal
import socket
import sys
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import suppress
from typing import Any

import msgspec

from baton import launch
from baton.engine.sglang import frames
from baton.errors import (
    BatonError,
    InternalError,
    InvalidRequestError,
    StartupError,
    UnavailableError,
)
from baton.worker.finish import finish

logger = logging.getLogger(__name__)

START_TIMEOUT_S = 600.0
"""Loading a large model takes minutes."""

STOP_GRACE_S = 10.0
ABORT_TIMEOUT_S = 5.0

_LIMITS = {
    # Their own defaults are 300 s, which is no backpressure; ours come from the mesh's deadlines.
    "SGLANG_DISAGGREGATION_BOOTSTRAP_TIMEOUT": "60",
    "SGLANG_DISAGGREGATION_WAITING_TIMEOUT": "60",
    # As long as the mesh keeps blocks out of use that a lost writer may still hit.
    "SGLANG_DISAGGREGATION_DEFERRED_DECODE_KV_RELEASE_TIMEOUT": "10",
}

Answer = frames.Output | frames.Failed | None


class EngineProcess:
    """One life of an engine. `on_events` is called with each report about its cache."""

    def __init__(self, on_events: Callable[[frames.CacheEvents], None]) -> None:
        self._on_events = on_events
        self._numbers = itertools.count()
        self._answers: dict[int, asyncio.Queue[Answer]] = {}
        self._process: asyncio.subprocess.Process | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._reading: asyncio.Task[None] | None = None
        self.snapshot: Mapping[str, Any] = {}
        self.answering = 0
        self.ended = asyncio.Event()

    @property
    def asked(self) -> int:
        """Requests under way."""
        return len(self._answers)

    @property
    def pid(self) -> int | None:
        """The process id while it runs."""
        return self._process.pid if self._process is not None else None

    async def start(self, parameters: frames.Launch) -> frames.Ready:
        """Starts the process and waits until the engine is loaded.

        Raises StartupError with what the engine says when it cannot be made.
        """
        ours, theirs = socket.socketpair()
        with theirs:
            command = launch.command(
                sys.executable,
                "-m",
                "baton.engine.sglang.child",
                str(theirs.fileno()),
                msgspec.json.encode(parameters).decode(),
            )
            self._process = await asyncio.create_subprocess_exec(
                *command,
                env={**_LIMITS, **os.environ},
                stdin=asyncio.subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        reader, self._writer = await asyncio.open_connection(sock=ours)
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                first = await frames.read_report(reader)
        except TimeoutError:
            first = frames.Refused(f"it was not ready after {START_TIMEOUT_S:g} s")
        if not isinstance(first, frames.Ready):
            await self.stop()
            why = first.message if isinstance(first, frames.Refused) else "see the log above"
            raise StartupError(f"the SGLang engine did not start: {why}")
        self._reading = asyncio.get_running_loop().create_task(self._read(reader))
        return first

    async def stop(self) -> None:
        """Hangs up, which ends the process, and kills what is left of it."""
        if self._writer is not None:
            self._writer.close()
        if self._process is not None:
            with suppress(TimeoutError):
                async with asyncio.timeout(STOP_GRACE_S):
                    await self._process.wait()
            _kill_session(self._process.pid)
            await self._process.wait()
        if self._reading is not None:
            await self._reading
        self.ended.set()

    async def stream(self, arguments: dict[str, Any]) -> AsyncGenerator[frames.Output, None]:
        """Runs a request and yields its outputs, the last one with `finish`.

        Closing it stops the request and returns once the engine let go of it. Raises
        InvalidRequestError, UnavailableError (ENGINE_DOWN) or InternalError.
        """
        if self._writer is None or self.ended.is_set():
            raise _down()
        number = next(self._numbers)
        answers: asyncio.Queue[Answer] = asyncio.Queue()
        self._answers[number] = answers
        has_ended = has_begun = False
        frames.write(self._writer, frames.Generate(number, arguments))
        try:
            while not has_ended:
                answer = await answers.get()
                if not isinstance(answer, frames.Output):
                    has_ended = True
                    raise _error(answer)
                has_ended = answer.finish is not None
                if not has_begun:
                    has_begun = True
                    self.answering += 1
                yield answer
        finally:
            self.answering -= has_begun
            try:
                if not has_ended:
                    await finish(self._abort(number, answers))
            finally:
                del self._answers[number]

    async def _abort(self, number: int, answers: asyncio.Queue[Answer]) -> None:
        if self._writer is None or self.ended.is_set():
            return
        frames.write(self._writer, frames.Abort(number))
        try:
            async with asyncio.timeout(ABORT_TIMEOUT_S):
                while isinstance(answer := await answers.get(), frames.Output):
                    if answer.finish is not None:
                        return
        except TimeoutError:
            logger.warning("aborted request did not end number=%d", number)

    async def _read(self, reader: asyncio.StreamReader) -> None:
        while (report := await frames.read_report(reader)) is not None:
            match report:
                case frames.Output() | frames.Failed():
                    if (answers := self._answers.get(report.number)) is not None:
                        answers.put_nowait(report)
                case frames.Load():
                    self.snapshot = report.snapshot
                case frames.CacheEvents():
                    self._on_events(report)
        self.ended.set()
        for answers in self._answers.values():
            answers.put_nowait(None)


def _error(answer: frames.Failed | None) -> BatonError:
    if answer is None:
        return _down()
    if answer.is_invalid:
        return InvalidRequestError(answer.message, reason="ENGINE_REFUSED")
    return InternalError(answer.message, reason="STEP_FAILED")


def _down() -> UnavailableError:
    return UnavailableError("the SGLang engine is down and is started again", reason="ENGINE_DOWN")


def _kill_session(pid: int) -> None:
    """Ends every process that the engine started; they share its session."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
