"""`baton status`: the fleet as one router sees it."""

import asyncio
import json

import typer
from rich.console import Console
from rich.table import Table

from baton.cli.common import JsonOption, RouterOption, reporting, router_address
from baton.client import RouterClient
from baton.picture import fleet_values, role_name, seconds
from baton.v1 import router_pb2, types_pb2

_BAR_CELLS = 10
_TABLE_WIDTH = 140


def status(router: RouterOption = None, as_json: JsonOption = False) -> None:
    """Show the workers, their load and their KV pools."""
    with reporting():
        address = router_address(router)
        fleet = asyncio.run(_fetch(address))
        if as_json:
            typer.echo(json.dumps(fleet_values(fleet)))
        else:
            show(address, fleet)


async def _fetch(address: str) -> router_pb2.GetFleetResponse:
    async with RouterClient(address) as client:
        return await client.fleet()


def show(address: str, fleet: router_pb2.GetFleetResponse) -> None:
    """Prints the fleet as a table and how old the picture is."""
    console = Console()
    console.width = max(console.width, _TABLE_WIDTH)  # better wrapped by the terminal than cut
    console.print(worker_table(fleet))
    typer.echo(
        f"router {address}: {fleet.active_requests} active requests, "
        f"state confirmed {seconds(fleet.state_age):.1f} s ago"
    )


def worker_table(fleet: router_pb2.GetFleetResponse) -> Table:
    """Returns one row per worker."""
    table = Table(box=None, pad_edge=False)
    for heading in (
        "worker",
        "role",
        "address",
        "waiting",
        "running",
        "KV in use",
        "busy",
        "KV by",
    ):
        table.add_column(heading, no_wrap=True)
    table.add_column("age", justify="right", no_wrap=True)
    table.add_column("incarnation", no_wrap=True)
    for worker in fleet.workers:
        table.add_row(*_row(worker))
    return table


def _row(worker: types_pb2.WorkerInfo) -> list[str]:
    stats = worker.stats
    load = ["-", "-", "-", "-", "-", "-"]
    if worker.HasField("stats"):
        load = [
            f"{stats.queued_requests} ({stats.queued_tokens} tokens)",
            f"{stats.prefilling_requests + stats.decoding_requests}",
            kv_bar(stats),
            "draining" if stats.draining else f"{100 * stats.busy_share:.0f} %",
            kv_paths(stats) or "-",
            f"{seconds(worker.stats_age):.1f} s",
        ]
    role = role_name(worker.role) or "-"
    return [worker.worker_id, role, worker.address, *load, worker.incarnation[:8]]


def kv_paths(stats: types_pb2.WorkerStats) -> str:
    """Returns how many peers are reached by what, such as "shared-memory x2"."""
    return ", ".join(f"{path} x{peers}" for path, peers in sorted(stats.kv_paths.items()))


def kv_bar(stats: types_pb2.WorkerStats) -> str:
    """Returns the pool as a bar: owned by requests, kept as prefix cache, free."""
    total = max(1, stats.kv_blocks_total)
    owned = round(_BAR_CELLS * stats.kv_blocks_owned / total)
    cached = min(_BAR_CELLS - owned, round(_BAR_CELLS * stats.kv_blocks_cached / total))
    bar = "\u2588" * owned + "\u2592" * cached + "\u2591" * (_BAR_CELLS - owned - cached)
    used = 100 * stats.kv_blocks_owned / total
    text = f"{bar} {used:.0f} % + {100 * stats.kv_blocks_cached / total:.0f} % cached"
    if stats.kv_host_total:
        text += f", {100 * stats.kv_host_used / stats.kv_host_total:.0f} % of host"
    return text
