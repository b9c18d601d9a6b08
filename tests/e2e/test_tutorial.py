"""The tutorial's commands, in its order, on the mesh that its own configuration describes.

Left out are those that start another mesh (`make up`, `make trace-console`, `baton up`) or the
shell's environment; addresses are those of this mesh, and the load is short.
"""

import asyncio
import re
import subprocess
import sys
from pathlib import Path

import pytest

from baton.local.plan import StackOptions
from baton.local.stack import Stack
from tests.support.documented import ROOT, commands, files

pytestmark = pytest.mark.e2e

TUTORIAL = ROOT / "docs" / "tutorial.md"
CONFIG = "my.yaml"
BATON = f"{sys.executable} -m baton.cli.main"


def typed_here(command: str, router: str) -> str | None:
    """Returns a command for this mesh and interpreter; None for one that is left out."""
    if command.startswith((". ", "make ", "baton up")):
        return None
    command = re.sub(r"^python ", f"{sys.executable} ", command)
    command = command.replace("127.0.0.1:7411", router)
    command = re.sub(r"--seconds \d+", "--seconds 2", command)
    if command.startswith("baton generate"):
        command = command.replace("baton generate", f"baton generate --router {router}")
    if command.startswith("baton simulate"):
        command += " --seeds 1 --requests 300"
    return re.sub(r"^baton ", f"{BATON} ", command)


async def test_the_tutorials_commands_work_in_their_order(tmp_path: Path) -> None:
    (tmp_path / CONFIG).write_text(files(TUTORIAL)[CONFIG])
    options = StackOptions(
        config_path=tmp_path / CONFIG, router_port=0, environ={"BATON_MESH__REDIS_URL": ""}
    )
    said = {}
    async with Stack(options) as stack:
        for command in commands(TUTORIAL):
            here = typed_here(command, stack.router_address)
            if here is not None:
                said[command] = await asyncio.to_thread(run, here, tmp_path)
    short, long = [text for command, text in said.items() if command.startswith("baton generate")]
    assert "local prefill" in short
    assert "remote prefill on prefill-0" in long
    assert "KV moved" in long
    assert any("bench.load" in command for command in said)
    assert any("latency" in text for command, text in said.items() if "simulate" in command)


def run(command: str, folder: Path) -> str:
    result = subprocess.run(
        ["bash", "-c", command], cwd=folder, capture_output=True, text=True, timeout=100
    )
    assert result.returncode == 0, f"{command}\n{result.stdout}{result.stderr}"
    return result.stdout + result.stderr
