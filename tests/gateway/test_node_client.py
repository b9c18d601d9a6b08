"""The JavaScript example against a router, where Node and its packages are."""

import asyncio
import shutil
from pathlib import Path

import pytest

from tests.support.control_plane import control_plane

FOLDER = Path(__file__).parents[2] / "examples" / "node"
NODE = shutil.which("node")

pytestmark = pytest.mark.skipif(
    NODE is None or not (FOLDER / "node_modules").exists(),
    reason="no Node or no packages: `npm install` in examples/node",
)


async def test_it_streams_an_answer(redis_url: str) -> None:
    async with control_plane(redis_url) as plane:
        await plane.decode("decode-0")
        await plane.admission()
        router = await plane.router()
        process = await asyncio.create_subprocess_exec(
            str(NODE), "client.js", "The with statement", router.address, cwd=FOLDER,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        output, errors = await asyncio.wait_for(process.communicate(), 60)
        assert process.returncode == 0, errors.decode()
        assert "48 tokens, TTFT" in output.decode()
        assert "prefill local, decode decode-0" in output.decode()
