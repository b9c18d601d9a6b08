"""A mesh with a tracing console beside it, and the trace of one disaggregated request to open.

    make trace-console

Arize Phoenix is installed into an environment of its own (855 MB, once), started, and given the
traces of a mesh of one prefill and one decode worker. One long prompt is sent; the page of its
trace is printed. Everything stops with Ctrl-C. With --screenshot FILE the page is also photographed
in headless Chromium and the run ends.
"""

import argparse
import asyncio
import os
import shutil
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

from rich.console import Console

from baton import launch
from baton.cli.demo import long_text
from baton.cli.summary import summary
from baton.client import Completion, Prompt, RequestOptions, RouterClient
from baton.local.plan import StackOptions
from baton.local.stack import Stack
from baton.requests import SamplingParams

PACKAGE = "arize-phoenix>=20"
HOME = Path(__file__).parents[1] / ".phoenix"
START_TIMEOUT_S = 300.0
ARRIVAL_MS, PAGE_MS, SETTLED_MS = 5_000, 180_000, 1_500

say = Console(highlight=False).print


def phoenix_command(given: Path | None) -> Path:
    """Returns Phoenix's command, installing it where it is missing."""
    command = (given or HOME / "venv") / "bin" / "phoenix"
    if command.exists():
        return command
    with Console().status(f"installing {PACKAGE} into {HOME} (855 MB, some minutes, once)"):
        make = [sys.executable, "-m", "venv", str(HOME / "venv")]
        subprocess.run(make, check=True)  # noqa: S603 - all of it is written here
        pip = [str(HOME / "venv" / "bin" / "python"), "-m", "pip", "install", "-qq"]
        install = [*pip, "--disable-pip-version-check", PACKAGE]
        subprocess.run(install, check=True)  # noqa: S603 - likewise
    return command


@asynccontextmanager
async def phoenix(command: Path, port: int, otlp_port: int) -> AsyncIterator[str]:
    """Runs Phoenix; yields its address once it answers."""
    (HOME / "data").mkdir(parents=True, exist_ok=True)
    environ = {
        **os.environ,
        "PHOENIX_WORKING_DIR": str(HOME / "data"),
        "PHOENIX_HOST": "127.0.0.1",
        "PHOENIX_PORT": str(port),
        "PHOENIX_GRPC_PORT": str(otlp_port),
        "PHOENIX_TELEMETRY_ENABLED": "false",
    }
    environ.pop("PYTHONPATH", None)
    with (HOME / "phoenix.log").open("w") as log:
        process = await asyncio.create_subprocess_exec(
            *launch.command(str(command), "serve"), env=environ, stdout=log, stderr=log
        )
        try:
            with Console().status("starting Phoenix (about 40 s)"):
                await _until_answering(f"http://127.0.0.1:{port}", process)
            yield f"http://127.0.0.1:{port}"
        finally:
            if process.returncode is None:
                process.terminate()
                await process.wait()


async def _until_answering(url: str, process: asyncio.subprocess.Process) -> None:
    deadline_s = time.monotonic() + START_TIMEOUT_S
    while process.returncode is None and time.monotonic() < deadline_s:
        try:
            await asyncio.to_thread(lambda: urlopen(url, timeout=2).close())  # noqa: S310 - http
        except (URLError, OSError):
            await asyncio.sleep(0.5)
        else:
            return
    sys.exit(f"Phoenix did not start; see {HOME / 'phoenix.log'}")


async def send(router: str) -> str:
    """Sends one long prompt, tells what happened, and returns the id of its trace."""
    options = RequestOptions(sampling=SamplingParams(max_tokens=24, temperature=0, ignore_eos=True))
    async with RouterClient(router) as client:
        async for part in client.generate(Prompt(text=long_text()), options):
            if isinstance(part, Completion):
                say("\n".join(f"  {phrase}" for phrase in summary(part)))
        listed = await client.requests(1)
    return listed.requests[0].trace_id


async def screenshot(url: str, path: Path) -> None:
    """Photographs the page of a trace once its spans are there."""
    from playwright.async_api import async_playwright

    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium")
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        # High enough for all attributes, among them the parts of the TTFT.
        page = await browser.new_page(viewport={"width": 1500, "height": 1850})
        await page.wait_for_timeout(ARRIVAL_MS)  # spans are exported and stored in batches
        page.set_default_timeout(PAGE_MS)
        await page.goto(url, wait_until="commit", timeout=PAGE_MS)
        await page.get_by_text("baton.kv_transfer").first.wait_for(timeout=PAGE_MS)
        await page.get_by_role("tab", name="Attributes").click()
        await page.get_by_text("baton.ttft.kv_transfer_s").first.wait_for(timeout=PAGE_MS)
        await page.wait_for_timeout(SETTLED_MS)
        await page.screenshot(path=path)
        await browser.close()


async def run(options: argparse.Namespace) -> None:
    """Runs it all."""
    command = phoenix_command(options.phoenix)
    environ = {
        "BATON_MESH__OTLP_ENDPOINT": f"http://127.0.0.1:{options.otlp_port}",
        "BATON_MESH__REDIS_URL": "",
        "OTEL_RESOURCE_ATTRIBUTES": "openinference.project.name=baton",
    }
    stack = Stack(StackOptions(prefill=1, decode=1, router_port=0, gateway_port=0, environ=environ))
    async with phoenix(command, options.port, options.otlp_port) as address:
        say("starting the mesh: one prefill worker, one decode worker")
        async with stack:
            say("one long prompt:")
            trace_id = await send(stack.router_address)
            url = f"{address}/redirects/traces/{trace_id}"
            say(f"its trace: [link={url}]{url}[/link]", soft_wrap=True)
            if options.screenshot is not None:
                await screenshot(url, options.screenshot)
                say(f"screenshot: {options.screenshot}")
                return
            say(f"more:  .venv/bin/baton generate TEXT --router {stack.router_address}")
            say("Ctrl-C stops everything.")
            await asyncio.Event().wait()


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--phoenix", type=Path, help="an environment that holds Phoenix already")
    parser.add_argument("--port", type=int, default=6006, help="of Phoenix's page")
    parser.add_argument("--otlp-port", type=int, default=4317, help="where Phoenix takes traces")
    parser.add_argument("--screenshot", type=Path, help="photograph the trace into FILE and end")
    try:
        asyncio.run(run(parser.parse_args()))
    except KeyboardInterrupt:
        say("stopped")


if __name__ == "__main__":
    main()
