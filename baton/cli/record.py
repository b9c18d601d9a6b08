"""`baton record`: the mesh's traffic as a trace, without content."""

import time
from contextlib import aclosing
from pathlib import Path
from typing import Annotated

import typer

from baton.cli.common import ConfigOption, fail, reporting, run_until_signal
from baton.config import load_config
from baton.state.connect import connect, ping_or_fail
from baton.state.recorder import TraceWriter
from baton.state.recorder import record as follow


def record(
    out: Annotated[Path, typer.Argument(help="The trace to write, as traffic.jsonl.")],
    redis_url: Annotated[
        str, typer.Option(help="Redis of the fleet; default is that of the configuration.")
    ] = "",
    seconds: Annotated[
        float | None, typer.Option(min=0.1, help="Stop after this time; else at Ctrl-C.")
    ] = None,
    config: ConfigOption = None,
) -> None:
    """Record requests as they end, in Mooncake's schema: times, lengths and block ids only."""
    with reporting():
        url = redis_url or load_config(config).mesh.redis_url
        if not url:
            fail("name the fleet's Redis: --redis-url or mesh.redis_url", ValueError("no Redis"))
        with out.open("w", encoding="utf-8") as lines:
            writer = TraceWriter(lines)
            run_until_signal(_record(url, writer, seconds))
            writer.write(float("inf"))
        typer.echo(f"wrote {writer.written} requests to {out}; replay with --trace {out}")


async def _record(url: str, writer: TraceWriter, seconds: float | None) -> None:
    end_s = float("inf") if seconds is None else time.monotonic() + seconds
    redis = connect(url)
    async with aclosing(redis):
        await ping_or_fail(redis, url)
        await follow(redis, writer, lambda: time.monotonic() >= end_s)
