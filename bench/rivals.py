"""sglang-router before fake HTTP workers, for the same work in the same run."""

import asyncio
import importlib.util
import os
import shutil
import sys
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from baton.local.child import Child, log_tail
from baton.ports import free_port
from bench.children import ChildFailed, module, running_child, wait_for_line

ENV_PYTHON = "SGLANG_ROUTER_PYTHON"
"""Interpreter that has the package, where it is not this one."""

_HOST = "127.0.0.1"
_READY_TIMEOUT_S = 90.0
_REGULAR_WORKERS = 4


@dataclass(frozen=True, slots=True)
class RivalRouter:
    """A running sglang-router."""

    pid: int
    port: int


def interpreter() -> str | None:
    """Returns the interpreter that can run sglang-router, or None."""
    named = os.environ.get(ENV_PYTHON)
    if named:
        return shutil.which(named)
    return sys.executable if importlib.util.find_spec("sglang_router") else None


@asynccontextmanager
async def running_sglang_router(
    python: str, directory: Path, step_ms: float, *, disaggregated: bool
) -> AsyncIterator[RivalRouter]:
    """Runs the router (cache_aware) with fake workers that take `step_ms` per token."""
    label = f"sglang-{'pd' if disaggregated else 'regular'}-{step_ms:g}"
    ports = [free_port(_HOST) for _ in range(_REGULAR_WORKERS)]
    async with AsyncExitStack() as stack:
        options = [text for port in ports for text in ("--port", str(port))]
        workers = await stack.enter_async_context(
            running_child(
                f"{label}-workers",
                module("bench.http_worker", *options, "--step-ms", str(step_ms)),
                directory,
            )
        )
        await wait_for_line(workers, "ready")
        port = free_port(_HOST)
        command = router_command(python, port, _fleet(ports, disaggregated))
        router = await stack.enter_async_context(running_child(label, command, directory))
        await wait_ready(port, router)
        yield RivalRouter(router.pid, port)


def _fleet(ports: Sequence[int], disaggregated: bool) -> list[str]:
    urls = [f"http://{_HOST}:{worker}" for worker in ports]
    fleet = ["--worker-urls", *urls]
    if disaggregated:
        half = len(urls) // 2
        fleet = ["--pd-disaggregation"]
        for number, url in enumerate(urls[:half]):
            fleet += ["--prefill", url, str(9001 + number)]
        for url in urls[half:]:
            fleet += ["--decode", url]
    return fleet


def router_command(python: str, port: int, fleet: Sequence[str]) -> list[str]:
    """Returns the command of the router; `fleet` are its options that name workers."""
    return [
        *(python, "-m", "sglang_router.launch_router", *fleet),
        *("--host", _HOST, "--port", str(port), "--policy", "cache_aware"),
        *("--prometheus-port", str(free_port(_HOST)), "--log-level", "warn"),
    ]


async def wait_ready(
    port: int, child: Child, path: str = "/readiness", timeout_s: float = _READY_TIMEOUT_S
) -> None:
    """Waits until a child answers well over HTTP. Raises ChildFailed when it ends or is late."""
    deadline_s = time.monotonic() + timeout_s
    while not await asyncio.to_thread(_is_ready, port, path):
        if child.exit_code is not None or time.monotonic() > deadline_s:
            last = "\n".join(log_tail(child.spec.log, 15))
            raise ChildFailed(f"{child.spec.name} did not start:\n{last}")
        await asyncio.sleep(0.2)


def _is_ready(port: int, path: str) -> bool:
    url = f"http://{_HOST}:{port}{path}"
    try:
        with urllib.request.urlopen(url, timeout=2) as response:
            return bool(response.status == 200)
    except (OSError, urllib.error.URLError):
        return False
