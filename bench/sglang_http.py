"""SGLang's own HTTP servers and sglang-router before them, on a benchmark's engine arguments.

`python -m bench.sglang_http ARGUMENTS` serves one engine with SGLang's server as it comes.
"""

import asyncio
import json
import secrets
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from baton.engine.rooms import ROOM_BITS
from baton.engine.sglang import DECODE, PREFILL
from baton.engine.sglang.options import engine_arguments
from baton.engine.sglang.start import new_places
from baton.ports import free_port
from bench.children import module, running_child
from bench.drive import Outcome
from bench.rivals import interpreter, router_command, wait_ready
from bench.sglang_fleet import Setup

_HOST = "127.0.0.1"
_START_TIMEOUT_S = 420.0
_REQUEST_TIMEOUT_S = 120.0


@dataclass(frozen=True, slots=True)
class HttpPair:
    """A prefill and a decode server; `router_port` is sglang-router's, None where it is missing."""

    prefill_port: int
    decode_port: int
    bootstrap_port: int
    router_port: int | None


@asynccontextmanager
async def running_http_pair(setup: Setup, directory: Path) -> AsyncIterator[HttpPair]:
    """Runs SGLang's servers for one pair, and sglang-router where it is installed."""
    async with AsyncExitStack() as stack:
        servers, bootstrap = [], 0
        for name, role in (("p0", PREFILL), ("d0", DECODE)):
            arguments, port = _arguments(setup, name, role, directory), free_port(_HOST)
            bootstrap = bootstrap or arguments["disaggregation_bootstrap_port"]
            command = module("bench.sglang_http", json.dumps({**arguments, "port": port}))
            child = await stack.enter_async_context(
                running_child(f"http-{name}", command, directory)
            )
            servers.append((port, child))
        for port, child in servers:
            await wait_ready(port, child, "/health", _START_TIMEOUT_S)
        (prefill, _), (decode, _) = servers
        pair = HttpPair(prefill, decode, bootstrap, None)
        if (python := interpreter()) is not None:
            router = await stack.enter_async_context(_running_router(python, pair, directory))
            pair = HttpPair(prefill, decode, bootstrap, router)
        yield pair


def _arguments(setup: Setup, name: str, role: str, directory: Path) -> dict[str, Any]:
    """Returns what the mesh starts this engine with, but its index."""
    arguments = engine_arguments(setup.options(name, role), new_places(directory))
    return {key: value for key, value in arguments.items() if key != "kv_events_config"}


@asynccontextmanager
async def _running_router(python: str, pair: HttpPair, directory: Path) -> AsyncIterator[int]:
    url = f"http://{_HOST}:"
    fleet = [
        *("--pd-disaggregation", "--prefill", f"{url}{pair.prefill_port}"),
        *(str(pair.bootstrap_port), "--decode", f"{url}{pair.decode_port}"),
    ]
    port = free_port(_HOST)
    command = router_command(python, port, fleet)
    async with running_child("sglang-router", command, directory) as router:
        await wait_ready(port, router)
        yield port


async def ask_pair(
    session: Any, pair: HttpPair, prompt: Sequence[int], tokens: int, outcome: Outcome
) -> None:
    """Asks both servers as sglang-router does: the same body, with where to meet."""
    body = _body(prompt, tokens) | {
        "bootstrap_host": _HOST,
        "bootstrap_port": pair.bootstrap_port,
        "bootstrap_room": secrets.randbits(ROOM_BITS),
    }
    prefill = asyncio.ensure_future(_ask(session, pair.prefill_port, body, Outcome(0.0)))
    await _ask(session, pair.decode_port, body, outcome)
    await prefill


async def ask_router(
    session: Any, port: int, prompt: Sequence[int], tokens: int, outcome: Outcome
) -> None:
    """Asks sglang-router."""
    await _ask(session, port, _body(prompt, tokens), outcome)


def _body(prompt: Sequence[int], tokens: int) -> dict[str, Any]:
    sampling = {"max_new_tokens": tokens, "temperature": 0.0, "ignore_eos": True}
    return {"input_ids": list(prompt), "sampling_params": sampling, "stream": True}


async def _ask(session: Any, port: int, body: dict[str, Any], outcome: Outcome) -> None:
    """Streams an answer; each event has all tokens so far."""
    url = f"http://{_HOST}:{port}/generate"
    outcome.started_s = time.monotonic()
    async with asyncio.timeout(_REQUEST_TIMEOUT_S), session.post(url, json=body) as response:
        response.raise_for_status()
        async for line in response.content:
            if line.startswith(b"data: {"):
                outcome.last_s = time.monotonic()
                outcome.first_s = outcome.first_s or outcome.last_s
                outcome.tokens = len(json.loads(line[6:]).get("output_ids") or ())
                outcome.messages += 1
    outcome.ended_s = time.monotonic()


def main() -> None:
    """Serves one engine until told to stop."""
    from sglang.srt.entrypoints.http_server import launch_server
    from sglang.srt.server_args import ServerArgs

    launch_server(ServerArgs(**json.loads(sys.argv[1])))


if __name__ == "__main__":
    main()
