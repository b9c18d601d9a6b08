"""What the commands about the simulator share: options, and how their texts are read.

The simulator knows the services; of `baton` only these commands know the simulator, and load it
when they run.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from baton.cli.common import fail, reporting
from baton.config import load_config
from baton.errors import ConfigError

if TYPE_CHECKING:
    from sim.setting import Setting

TraceOption = Annotated[
    str, typer.Option(help="A .jsonl or .csv file, or conversation, azure-code, mix, generated.")
]
HardwareOption = Annotated[str, typer.Option(help="What a worker is: h100, a100, opt-13b...")]
PolicyOption = Annotated[str, typer.Option(help="Routing: latency, weighted, round_robin...")]
TtftOption = Annotated[str, typer.Option(help="Limit for TTFT, as 200ms or 30s.")]
TpotOption = Annotated[str, typer.Option(help="Limit for TPOT, as 50ms.")]
SeedsOption = Annotated[int, typer.Option(min=1, help="How many seeds.")]
RequestsOption = Annotated[
    int, typer.Option(min=0, help="Only the first so many of the trace; 0 takes all.")
]
ArrivalsOption = Annotated[
    str, typer.Option(help="Made-up arrivals: PER_SECOND or PER_SECOND:CV (1 is Poisson).")
]
PoolOption = Annotated[int | None, typer.Option(min=1, help="Tokens of a worker's KV pool.")]
ResultOption = Annotated[Path | None, typer.Option("--json", help="Write all results.")]
PlotsOption = Annotated[Path | None, typer.Option(help="Write PNG and SVG plots into this folder.")]

_UNITS_S = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(us|ms|s|m)")


@contextmanager
def asking() -> Iterator[None]:
    """Turns what is wrong with a question into one clear message and exit code 1."""
    from sim.costs.presets import UnknownHardwareError
    from sim.traces.errors import TraceError

    with reporting():
        try:
            yield
        except (TraceError, UnknownHardwareError, ValueError) as error:
            fail(str(error), error)


def setting(
    *,
    trace: str,
    hardware: str,
    slo_ttft: str,
    slo_tpot: str,
    seeds: int,
    requests: int,
    arrivals: str,
    kv_tokens: int | None,
    config: Path | None,
    json_file: Path | None,
    plots: Path | None,
) -> "Setting":
    """Reads the options that all questions have; limits not given are the configuration's."""
    from sim.results.recorder import Slo
    from sim.setting import Setting
    from sim.traces.arrivals import Arrivals

    settings = load_config(config)
    return Setting(
        trace=trace,
        hardware=hardware,
        slo=Slo(
            duration_s("--slo-ttft", slo_ttft or f"{settings.qos.ttft_slo_ms}ms"),
            duration_s("--slo-tpot", slo_tpot or f"{settings.qos.tpot_slo_ms}ms"),
        ),
        config=settings,
        seeds=seeds,
        requests=requests or None,
        arrivals=Arrivals(*numbers("--arrivals", arrivals, ":")[:2]) if arrivals else None,
        kv_tokens=kv_tokens,
        json_file=json_file,
        plot_folder=plots,
    )


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
