"""`baton autoscale`: what the autoscaler wants and why; sizes by hand; advice without acting."""

import asyncio
import json
import os
import sys
from typing import Annotated, Any

import grpc
import typer
from rich.console import Console
from rich.table import Table

from baton.cli.common import JsonOption, fail, reporting
from baton.config import load_config
from baton.errors import ConfigError
from baton.rpc.channels import open_channel
from baton.state.background import running
from baton.state.connect import REDIS_ERRORS, connect
from baton.state.fleet import FleetView
from baton.state.records import WorkerRole
from baton.v1 import autoscaler_pb2, autoscaler_pb2_grpc

TIMEOUT_S = 5.0
_BACK_TO_POLICY = "auto"


def autoscale(
    advise: Annotated[
        bool, typer.Option("--advise", help="Decide here, print and do nothing; needs Redis.")
    ] = False,
    set_size: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="POOL=N", help="Fix a pool's size; POOL=auto ends that."),
    ] = None,
    autoscaler: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="The autoscaler; else one in the registry.")
    ] = "",
    orchestrator: Annotated[
        str, typer.Option(help="--advise: local, compose or kubernetes.")
    ] = "local",
    control: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="--advise: where a local stack listens.")
    ] = "",
    as_json: JsonOption = False,
) -> None:
    """Show what the autoscaler sees and wants, and why."""
    if advise:
        words = ["--advise", "--orchestrator", orchestrator]
        _become_autoscaler([*words, "--control", control] if control else words)
    with reporting():
        changes = dict(map(_change, set_size or ()))
        try:
            status = asyncio.run(_ask(autoscaler, changes))
        except grpc.aio.AioRpcError as error:
            fail(f"the autoscaler does not answer: {error.details()}", error)
        except REDIS_ERRORS as error:
            fail(f"Redis does not answer: {error}", error)
        if as_json:
            typer.echo(json.dumps(as_values(status)))
        else:
            show(status)


def _become_autoscaler(arguments: list[str]) -> None:
    """Runs the service's own command in place of this one: `baton` imports no service."""
    program = [sys.executable, "-m", "services.autoscaler.main", *arguments]
    os.execv(sys.executable, program)  # noqa: S606 - our own interpreter


def _change(text: str) -> tuple[str, int | None]:
    pool, _, size = text.partition("=")
    if size == _BACK_TO_POLICY:
        return pool, None
    if not size.isdecimal():
        raise ConfigError(f"--set: {text!r} is no POOL=N or POOL=auto")
    return pool, int(size)


async def _ask(address: str, changes: dict[str, int | None]) -> autoscaler_pb2.GetStatusResponse:
    async with open_channel(address or await _find()) as channel:
        stub = autoscaler_pb2_grpc.AutoscalerServiceStub(channel)
        for pool, replicas in changes.items():
            request = autoscaler_pb2.SetOverrideRequest(pool=pool, replicas=replicas)
            await stub.SetOverride(request, timeout=TIMEOUT_S)
        return await stub.GetStatus(autoscaler_pb2.GetStatusRequest(), timeout=TIMEOUT_S)


async def _find() -> str:
    """Returns the address of an autoscaler in the registry. Raises ConfigError without one."""
    url = load_config().mesh.redis_url
    if not url:
        raise ConfigError("name the autoscaler by --autoscaler HOST:PORT, or its Redis: REDIS_URL")
    redis = connect(url)
    try:
        fleet = FleetView(redis)
        async with running(fleet.run()):
            await fleet.wait_synced()
            found = fleet.workers(WorkerRole.AUTOSCALER)
    finally:
        await redis.aclose()
    if not found:
        raise ConfigError("no autoscaler is registered; start one with `baton up --autoscale`")
    return found[0].record.address


def show(status: autoscaler_pb2.GetStatusResponse) -> None:
    """Prints the status as a table."""
    table = Table(box=None, pad_edge=False)
    for heading in ("pool", "ready", "starting", "draining", "failed", "target", "why"):
        table.add_column(heading, no_wrap=True)
    for pool in status.pools:
        counts = (pool.ready, pool.starting, pool.draining, pool.failed, pool.target)
        table.add_row(pool.pool, *map(str, counts), pool.reason)
    Console().print(table)
    for pool in status.pools:
        numbers = " ".join(f"{name}={value:.4g}" for name, value in sorted(pool.numbers.items()))
        typer.echo(f"{pool.pool}: {numbers}")
    typer.echo(
        f"policy {status.policy}, {status.orchestrator} workers, leader {status.leader or 'none'}"
    )
    for problem in status.problems:
        typer.echo(f"problem: {problem}")


def as_values(status: autoscaler_pb2.GetStatusResponse) -> dict[str, Any]:
    """Returns the status as values for JSON."""
    return {
        "leader": status.leader,
        "policy": status.policy,
        "orchestrator": status.orchestrator,
        "problems": list(status.problems),
        "pools": [
            {
                "pool": pool.pool,
                "ready": pool.ready,
                "starting": pool.starting,
                "draining": pool.draining,
                "failed": pool.failed,
                "target": pool.target,
                "reason": pool.reason,
                "numbers": dict(pool.numbers),
                "override": pool.override_replicas if pool.HasField("override_replicas") else None,
            }
            for pool in status.pools
        ],
    }
