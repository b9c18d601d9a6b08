"""`baton simulate`: a fleet and its policies on a recorded workload, in simulated time."""

import re
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from baton.cli.common import ConfigOption, fail, reporting
from baton.config import load_config
from baton.errors import ConfigError

_UNITS_S = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(us|ms|s|m)")


def simulate(
    trace: Annotated[
        str,
        typer.Option(help="A .jsonl or .csv file, or conversation, azure-code, mix, generated."),
    ] = "conversation",
    prefill: Annotated[int, typer.Option(help="Prefill workers.")] = 4,
    decode: Annotated[int, typer.Option(help="Decode workers.")] = 8,
    aggregated: Annotated[int, typer.Option(help="Workers that do both.")] = 0,
    policy: Annotated[
        str, typer.Option(help="Routing: weighted, latency, round_robin...")
    ] = "weighted",
    compare: Annotated[str, typer.Option(help="More policies, separated by commas.")] = "",
    baseline: Annotated[
        bool, typer.Option(help="Compare with an aggregated fleet of the same size.")
    ] = False,
    hardware: Annotated[
        str, typer.Option(help="What a worker is: h100, a100, opt-13b...")
    ] = "h100",
    slo_ttft: Annotated[str, typer.Option(help="Limit for TTFT, as 200ms or 30s.")] = "",
    slo_tpot: Annotated[str, typer.Option(help="Limit for TPOT, as 50ms.")] = "",
    rate: Annotated[str, typer.Option(help="Load relative to the trace; several by commas.")] = "1",
    seeds: Annotated[int, typer.Option(min=1, help="How many seeds.")] = 3,
    requests: Annotated[int | None, typer.Option(min=1, help="Only the first so many.")] = None,
    arrivals: Annotated[
        str, typer.Option(help="Made-up arrivals: PER_SECOND or PER_SECOND:CV (1 is Poisson).")
    ] = "",
    admission: Annotated[bool, typer.Option(help="Let admission decide who enters.")] = True,
    bandwidth: Annotated[float, typer.Option(help="A worker's network. GB per second.")] = 25.0,
    chunk: Annotated[
        int | None, typer.Option(min=16, help="Tokens per step where decodes run.")
    ] = None,
    kv_tokens: Annotated[int | None, typer.Option(min=1, help="A worker's KV pool.")] = None,
    config: ConfigOption = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write all results.")] = None,
    plots: Annotated[Path | None, typer.Option(help="Write PNG plots into this folder.")] = None,
) -> None:
    """Replay a workload on a simulated fleet that runs the mesh's own policies."""
    # The simulator knows the services; only this command knows the simulator.
    from sim.command import Question
    from sim.command import simulate as run
    from sim.costs.presets import UnknownHardwareError
    from sim.results.recorder import Slo
    from sim.traces.arrivals import Arrivals
    from sim.traces.errors import TraceError

    with reporting():
        settings = load_config(config)
        question = Question(
            trace=trace,
            hardware=hardware,
            prefill=prefill,
            decode=decode,
            aggregated=aggregated,
            policies=[policy, *filter(None, compare.split(","))],
            slo=Slo(
                duration_s("--slo-ttft", slo_ttft or f"{settings.qos.ttft_slo_ms}ms"),
                duration_s("--slo-tpot", slo_tpot or f"{settings.qos.tpot_slo_ms}ms"),
            ),
            rates=numbers("--rate", rate, ","),
            seeds=seeds,
            config=settings,
            compares_aggregated=baseline,
            admits_all=not admission,
            requests=requests,
            arrivals=Arrivals(*numbers("--arrivals", arrivals, ":")[:2]) if arrivals else None,
            bandwidth=bandwidth * 1e9,
            mixed_budget=chunk,
            kv_tokens=kv_tokens,
            json_file=json_file,
            plot_folder=plots,
        )
        try:
            run(question, Console())
        except (TraceError, UnknownHardwareError, ValueError) as error:
            fail(str(error), error)


def duration_s(option: str, text: str) -> float:
    """Returns a duration as `200ms`, `30s` or `1.5m` in seconds. Raises ConfigError."""
    found = _DURATION.fullmatch(text.strip())
    if found is None:
        raise ConfigError(f"{option}: {text!r} is no duration; write one as 200ms or 30s")
    return float(found[1]) * _UNITS_S[found[2]]


def numbers(option: str, text: str, separator: str) -> list[float]:
    """Returns positive numbers from a list. Raises ConfigError."""
    try:
        values = [float(part) for part in text.split(separator)]
    except ValueError as error:
        raise ConfigError(f"{option}: {text!r} is no list of numbers") from error
    if not all(0 < value < float("inf") for value in values):
        raise ConfigError(f"{option}: {text!r} must be positive")
    return values
