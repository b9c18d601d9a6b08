"""The same load as bench/load.py on sglang-router's POST /generate, over kept-alive HTTP/1.1."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

import typer
import uvloop

from baton.collector import quieten_collector
from bench.drive import LoadPlan, LoadResult, Outcome, drive
from bench.prompts import PromptPlan

_READ_BYTES = 1 << 16
_TIMEOUT_S = 120.0
_EVENT = b"data: {"
_STREAM_END = b"0\r\n\r\n"


class HttpTarget:
    """A router over HTTP; each request outstanding has a connection, kept for the next one."""

    def __init__(self, host: str, port: int, prompts: PromptPlan) -> None:
        self._host = host
        self._port = port
        self._prompts = prompts
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def send(self, number: int, outcome: Outcome) -> None:
        """Runs one streaming request to its end."""
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                async with self._connection() as (reader, writer):
                    writer.write(self._request(number))
                    await _read_stream(reader, outcome)
        except (OSError, TimeoutError, asyncio.IncompleteReadError) as error:
            outcome.error = type(error).__name__
        if not outcome.error and outcome.tokens != self._prompts.output_tokens:
            outcome.error = "WRONG_LENGTH"

    async def close(self) -> None:
        """Closes all idle connections."""
        for _, writer in self._idle:
            writer.close()
        await asyncio.gather(*(writer.wait_closed() for _, writer in self._idle))

    @asynccontextmanager
    async def _connection(
        self,
    ) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        """Lends a connection; one whose answer was not read to its end is closed."""
        if self._idle:
            reader, writer = self._idle.pop()
        else:
            reader, writer = await asyncio.open_connection(self._host, self._port)
        is_whole = False
        try:
            yield reader, writer
            is_whole = True
        finally:
            if is_whole:
                self._idle.append((reader, writer))
            else:
                writer.close()

    def _request(self, number: int) -> bytes:
        body = json.dumps(
            {
                "text": self._prompts.text(number),
                "sampling_params": {"max_new_tokens": self._prompts.output_tokens},
                "stream": True,
            }
        ).encode()
        head = (
            f"POST /generate HTTP/1.1\r\nhost: {self._host}:{self._port}\r\n"
            f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        )
        return head.encode() + body


async def _read_stream(reader: asyncio.StreamReader, outcome: Outcome) -> None:
    """Reads head and events; what a read split is put together by keeping less than a marker."""
    head = await reader.readuntil(b"\r\n\r\n")
    status = head.split(b" ", 2)[1].decode()
    if status != "200":
        outcome.error = f"HTTP_{status}"
    tail = b""
    while not tail.endswith(_STREAM_END):
        data = await reader.read(_READ_BYTES)
        if not data:
            raise asyncio.IncompleteReadError(tail, None)
        data = tail + data
        tokens = data.count(_EVENT)
        tail = data[1 - len(_EVENT) :]
        if tokens > 0:
            outcome.last_s = time.monotonic()
            outcome.first_s = outcome.first_s or outcome.last_s
            outcome.tokens += tokens
            outcome.messages += 1


async def load_http(
    host: str, port: int, prompts: PromptPlan, plan: LoadPlan, watched: int | None = None
) -> LoadResult:
    """Loads an HTTP router; `watched` is the process whose CPU time is taken."""
    target = HttpTarget(host, port, prompts)
    try:
        return await drive(target.send, plan, watched)
    finally:
        await target.close()


def main() -> None:
    """Runs the command line."""
    typer.run(_command)


def _command(
    port: Annotated[int, typer.Option(help="Port of the router.")],
    seconds: Annotated[float, typer.Option(help="Measured time. Seconds.")] = 10.0,
    concurrency: Annotated[int, typer.Option(help="Requests outstanding.")] = 32,
    prompt_tokens: Annotated[int, typer.Option(help="Tokens of each prompt.")] = 64,
    shared_tokens: Annotated[int, typer.Option(help="Of them shared in a group.")] = 0,
    groups: Annotated[int, typer.Option(help="Groups of prompts.")] = 1,
    output_tokens: Annotated[int, typer.Option(help="Tokens of each answer.")] = 16,
    seed: Annotated[int, typer.Option(help="Makes the prompts.")] = 0,
    watch: Annotated[int, typer.Option(help="Process whose CPU time is taken; 0 none.")] = 0,
) -> None:
    """Load an HTTP router and print what came back."""
    prompts = PromptPlan(prompt_tokens, output_tokens, shared_tokens, groups, seed)
    plan = LoadPlan(seconds, concurrency, seed=seed)
    quieten_collector()
    result = uvloop.run(load_http("127.0.0.1", port, prompts, plan, watch or None))
    print(json.dumps(result.figures()))


if __name__ == "__main__":
    main()
