"""`baton calibrate`: a hardware preset for the simulator from a running fleet."""

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from baton.cli.common import ConfigOption, fail, reporting
from baton.config import load_config


def calibrate(
    out: Annotated[Path, typer.Argument(help="The file to write, for --hardware FILE.")],
    redis_url: Annotated[
        str, typer.Option(help="Redis of the fleet; default is that of the configuration.")
    ] = "",
    name: Annotated[str, typer.Option(help="What the preset is called.")] = "calibrated",
    config: ConfigOption = None,
) -> None:
    """Fit a preset to what a running fleet's workers measured, and print its error."""
    from sim.calibrate import NotMeasuredError
    from sim.calibrate import calibrate as run
    from sim.costs.hardware import save

    with reporting():
        url = redis_url or load_config(config).mesh.redis_url
        if not url:
            fail("name the fleet's Redis: --redis-url or mesh.redis_url", ValueError("no Redis"))
        try:
            made, (first_s, byte_s) = asyncio.run(run(url, name))
        except NotMeasuredError as error:
            fail(str(error), error)
        else:
            save(out, made)
            typer.echo(made.describe())
            rate = f"{1e-9 / byte_s:.3g} GB/s" if byte_s else "no measurable time per byte"
            typer.echo(f"a transfer adds {1e3 * first_s:.2f} ms and moves {rate}")
            typer.echo(f"wrote {out}; use it with --hardware {out}")
