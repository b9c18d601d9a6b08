"""Waiting for a condition with a deadline, so that no test sleeps and hopes."""

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable


async def eventually(
    condition: Callable[[], bool | Awaitable[bool]], timeout_s: float = 5.0
) -> None:
    """Returns once `condition` holds; fails with its source when it does not in `timeout_s`."""
    deadline_s = time.monotonic() + timeout_s
    while not await _holds(condition):
        if time.monotonic() > deadline_s:
            raise AssertionError(f"not true within {timeout_s} s: {_describe(condition)}")
        await asyncio.sleep(0.005)


async def _holds(condition: Callable[[], bool | Awaitable[bool]]) -> bool:
    result = condition()
    return await result if inspect.isawaitable(result) else bool(result)


def _describe(condition: Callable[[], object]) -> str:
    try:
        return inspect.getsource(condition).strip()
    except OSError:
        return repr(condition)
