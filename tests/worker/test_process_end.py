"""The end of a service's process."""

import asyncio
import os
import signal
import sys

_HANGS_AT_ITS_END = """
import threading
from baton import process

async def serve(around):
    # As where no memory is left for a thread: whoever starts one waits for ever.
    threading.Thread.start = lambda thread: threading.Event().wait()

process.END_WITHIN_S = 0.3
process.run_process("router", process.ProcessOptions(None, "", 0, "", ""), serve)
"""

_NEVER_DRAINS = """
import asyncio
from baton import process

async def serve(around):
    print("serving", flush=True)
    await asyncio.Event().wait()

process.STOP_WITHIN_S = 0.3
process.run_process("router", process.ProcessOptions(None, "", 0, "", ""), serve)
"""


async def _started(program: str, redis_url: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        program,
        env={**os.environ, "REDIS_URL": redis_url},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


async def test_process_that_hangs_at_its_end_is_ended_and_says_where_it_stood(
    redis_url: str,
) -> None:
    process = await _started(_HANGS_AT_ITS_END, redis_url)
    _, errors = await process.communicate()
    assert process.returncode == -signal.SIGALRM
    assert b"most recent call first" in errors


async def test_process_that_does_not_stop_when_told_is_ended(redis_url: str) -> None:
    process = await _started(_NEVER_DRAINS, redis_url)
    assert process.stdout is not None
    await process.stdout.readline()
    process.terminate()
    await process.communicate()
    assert process.returncode == -signal.SIGALRM
