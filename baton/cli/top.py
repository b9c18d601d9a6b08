"""`baton top`: the mesh live in the terminal."""

import asyncio
import time
from typing import Annotated, Any

import typer
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from baton.cli.common import RouterOption, reporting, router_address, run_until_signal
from baton.cli.status import worker_table
from baton.cli.summary import PARTS
from baton.client import RouterClient
from baton.errors import UnavailableError
from baton.picture import requests_values, seconds
from baton.v1 import router_pb2

_SHOWN_REQUESTS = 12
_WINDOW = 200
_WIDTH = 120
_COLOURS = ("white", "bright_black", "cyan", "green", "yellow", "red", "magenta", "blue")
_BAR_CELLS = 60


def top(
    router: RouterOption = None,
    interval_s: Annotated[
        float, typer.Option("--interval", min=0.2, help="Seconds between pictures.")
    ] = 1.0,
    once: Annotated[bool, typer.Option("--once", help="Print one picture and end.")] = False,
) -> None:
    """Watch workers, requests and where the time to first token goes; Ctrl-C ends it."""
    with reporting():
        address = router_address(router)
        if once:
            asyncio.run(_once(address))
        else:
            run_until_signal(_watch(address, interval_s))


async def _once(address: str) -> None:
    console = Console()
    console.width = max(console.width, _WIDTH)  # better wrapped by the terminal than cut
    async with RouterClient(address) as client:
        console.print(await _picture(client))


async def _watch(address: str, interval_s: float) -> None:
    async with RouterClient(address) as client:
        picture = await _picture(client)  # a router that is not there is said at once
        with Live(picture, screen=True, auto_refresh=False) as live:
            while True:
                live.update(picture, refresh=True)
                await asyncio.sleep(interval_s)
                try:
                    picture = await _picture(client)
                except UnavailableError as error:
                    picture = Group(Text(error.message, style="red"), picture)


async def _picture(client: RouterClient) -> RenderableType:
    fleet, listed = await asyncio.gather(client.fleet(), client.requests(_WINDOW))
    values = requests_values(listed)
    return Group(
        headline(client.address, fleet, values),
        Text(),
        worker_table(fleet),
        Text(),
        split_bar(values["requests"]),
        Text(),
        request_table(values["requests"]),
    )


def headline(
    address: str, fleet: router_pb2.GetFleetResponse, values: dict[str, Any]
) -> RenderableType:
    """Returns goodput, running requests and how old the picture is, in one line."""
    offered = sum(count["offered"] for count in values["attainment"])
    met = sum(count["met"] for count in values["attainment"])
    goodput = f"goodput {100 * met / offered:.1f} % of {offered}" if offered else "no request yet"
    targets = values["targets"]
    return Text(
        f"Baton  {address}  {goodput}  running {fleet.active_requests}  "
        f"targets TTFT {1000 * targets['ttft_s']:.0f} ms, TPOT {1000 * targets['tpot_s']:.0f} ms  "
        f"state {seconds(fleet.state_age):.1f} s old",
        style="bold",
    )


def split_bar(requests: list[dict[str, Any]]) -> RenderableType:
    """Returns the mean time to first token as a bar of its parts, with a legend."""
    timed = [request["timing"] for request in requests if request["timing"]]
    if not timed:
        return Text("Where the time to first token goes: it appears with the first answer.")
    parts = {
        name: sum(timing["parts"][field.removesuffix("_s")] for timing in timed) / len(timed)
        for name, field in PARTS
    }
    total = sum(parts.values()) or 1.0
    bar, legend = Text(), Text()
    for (name, part_s), colour in zip(parts.items(), _COLOURS, strict=True):
        bar.append("\u2588" * round(_BAR_CELLS * part_s / total), style=colour)
        legend.append("\u25a0 ", style=colour)
        legend.append(f"{name} {1000 * part_s:.1f}  ")
    head = f"TTFT {1000 * total:.1f} ms, mean of {len(timed)} answers (ms)"
    return Group(Text(head), bar, legend)


def request_table(requests: list[dict[str, Any]]) -> Table:
    """Returns the newest requests, one a row."""
    table = Table(box=None, pad_edge=False)
    for heading in ("age", "request", "state", "priority", "placement"):
        table.add_column(heading, no_wrap=True)
    for heading in ("prompt", "cached", "output", "TTFT ms", "TPOT ms"):
        table.add_column(heading, justify="right", no_wrap=True)
    for request in requests[:_SHOWN_REQUESTS]:
        table.add_row(*_row(request), style=_style(request))
    return table


def _row(request: dict[str, Any]) -> list[str]:
    timing = request["timing"]
    tpot_s = timing["tpot_s"] if timing else None
    return [
        f"{time.time() - request['arrived_at_s']:.0f} s",
        request["request_id"],
        request["error_type"] or request["stage"],
        request["priority"],
        _placement(request["placement"]),
        str(request["prompt_tokens"]),
        str(request["cached_tokens"]),
        str(request["completion_tokens"]),
        f"{1000 * timing['ttft_s']:.1f}" if timing else "",
        "" if tpot_s is None else f"{1000 * tpot_s:.1f}",
    ]


def _placement(placement: dict[str, Any] | None) -> str:
    if placement is None:
        return ""
    decode = str(placement["decode_worker_id"])
    if placement["prefill_mode"] == "remote":
        return f"{placement['prefill_worker_id']} > {decode}"
    return decode


def _style(request: dict[str, Any]) -> str:
    if request["error_type"] or request["met_targets"] is False:
        return "red"
    return "" if request["stage"] == "ended" else "bold"
