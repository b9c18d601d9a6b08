"""`baton plan`: which fleet of a given size serves a workload best, and whether to split it."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from baton.cli.common import ConfigOption, fail, reporting
from baton.cli.simulate import duration_s, numbers
from baton.config import load_config


def plan(
    trace: Annotated[
        str,
        typer.Option(help="A .jsonl or .csv file, or conversation, azure-code, mix, generated."),
    ] = "conversation",
    gpus: Annotated[int, typer.Option(min=2, help="How many GPUs there are.")] = 128,
    slo_ttft: Annotated[str, typer.Option(help="Limit for TTFT, as 200ms or 30s.")] = "",
    slo_tpot: Annotated[str, typer.Option(help="Limit for TPOT, as 50ms.")] = "",
    hardware: Annotated[
        str, typer.Option(help="What a worker is: h100, a100, opt-13b...")
    ] = "h100",
    policy: Annotated[str, typer.Option(help="How requests are routed.")] = "latency",
    attainment: Annotated[
        float, typer.Option(min=0.01, max=1.0, help="Share of requests that must meet both limits.")
    ] = 0.9,
    requests: Annotated[
        int, typer.Option(min=0, help="Only the first so many of the trace; 0 takes all.")
    ] = 3000,
    seeds: Annotated[int, typer.Option(min=1, help="How many seeds for the result.")] = 3,
    arrivals: Annotated[
        str, typer.Option(help="Made-up arrivals: PER_SECOND or PER_SECOND:CV (1 is Poisson).")
    ] = "",
    kv_tokens: Annotated[int | None, typer.Option(min=1, help="A worker's KV pool.")] = None,
    config: ConfigOption = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the result.")] = None,
    plots: Annotated[Path | None, typer.Option(help="Write plots into this folder.")] = None,
) -> None:
    """Search the split of a fleet, and no split, for the highest goodput per GPU."""
    # The simulator knows the services; only the commands about it know the simulator.
    from sim.costs.presets import UnknownHardwareError
    from sim.plan_command import PlanQuestion
    from sim.plan_command import plan as run
    from sim.results.recorder import Slo
    from sim.traces.arrivals import Arrivals
    from sim.traces.errors import TraceError

    with reporting():
        settings = load_config(config)
        question = PlanQuestion(
            trace=trace,
            gpus=gpus,
            hardware=hardware,
            slo=Slo(
                duration_s("--slo-ttft", slo_ttft or f"{settings.qos.ttft_slo_ms}ms"),
                duration_s("--slo-tpot", slo_tpot or f"{settings.qos.tpot_slo_ms}ms"),
            ),
            config=settings,
            policy=policy,
            requests=requests or None,
            seeds=seeds,
            attainment=attainment,
            arrivals=Arrivals(*numbers("--arrivals", arrivals, ":")[:2]) if arrivals else None,
            kv_tokens=kv_tokens,
            json_file=json_file,
            plot_folder=plots,
        )
        try:
            run(question, Console())
        except (TraceError, UnknownHardwareError, ValueError) as error:
            fail(str(error), error)
