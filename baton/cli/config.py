"""`baton config`: is a file right, and what is in force."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import BaseModel

from baton.cli.common import reporting
from baton.config import Config, Origin, knobs, load_settings

app = typer.Typer(help="Check a configuration, or show what is in force.", no_args_is_help=True)


@app.command("check")
def check(file: Annotated[Path, typer.Argument(help="YAML or JSON file.")]) -> None:
    """Check a file; exit code 1 and every problem with path and reason when it is not right."""
    with reporting():
        # The file alone: what the environment adds is not the file's fault.
        settings = load_settings(file, {})
    given = sum(origin is Origin.FILE for origin in settings.origins.values())
    pools, slo = settings.config.autoscale, settings.config.qos
    typer.echo(f"{file}: right; {given} settings given, {len(settings.origins) - given} defaults")
    typer.echo(
        f"  model {settings.config.model}, {pools.prefill.min_replicas} to "
        f"{pools.prefill.max_replicas} prefill and {pools.decode.min_replicas} to "
        f"{pools.decode.max_replicas} decode workers, targets TTFT {slo.ttft_slo_ms:g} ms and "
        f"TPOT {slo.tpot_slo_ms:g} ms"
    )


@app.command("show")
def show(
    file: Annotated[
        Path | None, typer.Argument(help="YAML or JSON file; default $BATON_CONFIG.")
    ] = None,
) -> None:
    """Show every setting: its value, where that came from, unit, default and effect."""
    with reporting():
        settings = load_settings(file)
    for knob in knobs():
        value, origin = value_of(settings.config, knob.path), settings.origins[knob.path]
        source = "" if origin is Origin.DEFAULT else f"from {origin.value}, "
        typer.echo(f"{knob.path}: {text(value)}")
        typer.echo(f"    {knob.effect} [{knob.unit}; {source}default {text(knob.default)}]")


def value_of(config: Config, path: str) -> Any:
    """Returns a setting's value by its path."""
    value: Any = config
    for name in path.split("."):
        value = getattr(value, name)
    return value


def text(value: Any) -> str:
    """Returns a value as it is written in YAML."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, BaseModel):
        return text(value.model_dump(exclude_none=True))
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{name}: {text(inner)}" for name, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(text, value)) + "]"
    if isinstance(value, str):
        return value or '""'
    return f"{value:g}"
