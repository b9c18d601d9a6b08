"""A real Prometheus scrapes a real mesh; every query of every dashboard and alert returns data."""

import asyncio
import json
import shutil
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlencode
from urllib.request import urlopen

import openai
import pytest

from baton.client import Prompt, RequestOptions, RouterClient
from baton.errors import InvalidRequestError
from baton.local.plan import StackOptions
from baton.local.stack import Stack
from baton.ports import free_port
from baton.requests import Priority, SamplingParams
from tests.support.waiting import eventually

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))
import monitoring

PROMETHEUS = shutil.which("prometheus")
pytestmark = [
    pytest.mark.e2e,
    pytest.mark.timeout(240),
    pytest.mark.skipif(
        PROMETHEUS is None,
        reason="no Prometheus here: `bash tools/console_tools.sh` installs Debian's",
    ),
]
WINDOW = "20s"


@asynccontextmanager
async def prometheus(config: Path, data: Path) -> AsyncIterator[str]:
    """Runs Prometheus on a private port; yields its URL."""
    port = free_port("127.0.0.1")
    process = await asyncio.create_subprocess_exec(
        str(PROMETHEUS), f"--config.file={config}", f"--storage.tsdb.path={data}",
        f"--web.listen-address=127.0.0.1:{port}", "--log.level=warn",
    )  # fmt: skip
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        await process.wait()


def ask(url: str, **parameters: str) -> list[Any]:
    """Returns the series of a query; none while Prometheus does not answer."""
    try:
        with urlopen(f"{url}/api/v1/query?{urlencode(parameters)}", timeout=5) as answer:
            series: list[Any] = json.load(answer)["data"]["result"]
            return series
    except OSError:
        return []


async def drive(stack: Stack) -> None:
    """Sends what makes every metric move: long and short prompts, all priorities, a failure."""
    ids = iter(range(300, 3000))
    async with RouterClient(stack.router_address) as router:
        for priority in Priority:
            for tokens in (800, 30, 800):
                prompt = Prompt(input_ids=(next(ids),) * tokens)
                options = RequestOptions(
                    sampling=SamplingParams(max_tokens=8, ignore_eos=True), priority=priority
                )
                async for _ in router.generate(prompt, options):
                    pass
        with pytest.raises(InvalidRequestError):
            async for _ in router.generate(Prompt(text="")):
                pass
    async with openai.AsyncOpenAI(
        base_url=f"http://{stack.gateway_address}/v1", api_key="x", max_retries=0
    ) as client:
        await client.completions.create(model="baton-tiny", prompt="The", max_tokens=2)


def queries() -> dict[str, str]:
    """Returns every query of the dashboards and alerts by where it stands."""
    found = {
        f"{name}: {panel.title}: {legend}": query
        for name, panels in monitoring.DASHBOARDS.items()
        for panel in panels
        for legend, query in panel.queries.items()
    }
    found |= {f"alert {alert.name}": alert.expr for alert in monitoring.ALERTS}
    return {name: query.replace(monitoring.WINDOW, WINDOW) for name, query in found.items()}


async def test_every_panel_and_alert_has_data(tmp_path: Path) -> None:
    options = StackOptions(
        prefill=1, decode=2, router_port=0, gateway_port=0, has_metrics=True,
        run_dir=tmp_path / "run", is_restarting=False,
        environ={"BATON_ENGINE__KIND": "simulated"},
    )  # fmt: skip
    async with (
        Stack(options) as stack,
        prometheus(stack.prometheus_config, tmp_path / "data") as url,
    ):
        missing = queries()

        async def all_have_data() -> bool:
            await drive(stack)
            for name, query in list(missing.items()):
                if await asyncio.to_thread(lambda q=query: ask(url, query=q)):
                    del missing[name]
            return not missing

        try:
            await eventually(all_have_data, timeout_s=60)
        except AssertionError:
            pytest.fail(f"no data for {json.dumps(missing, indent=1)}")
        down = await asyncio.to_thread(lambda: ask(url, query="up == 0"))
        assert not down
        alerts = await asyncio.to_thread(lambda: ask(url, query="ALERTS"))
        assert {alert["metric"]["alertname"] for alert in alerts} <= {
            alert.name for alert in monitoring.ALERTS
        }
