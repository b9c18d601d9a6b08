"""`baton plan`: which fleet of a given size serves a workload best, and whether to split it."""

from typing import Annotated

import typer
from rich.console import Console

from baton.cli import simulation as shared
from baton.cli.common import ConfigOption


def plan(
    trace: shared.TraceOption = "conversation",
    gpus: Annotated[int, typer.Option(min=2, help="How many GPUs there are.")] = 128,
    slo_ttft: shared.TtftOption = "",
    slo_tpot: shared.TpotOption = "",
    hardware: shared.HardwareOption = "h100",
    policy: shared.PolicyOption = "latency",
    attainment: Annotated[
        float, typer.Option(min=0.01, max=1.0, help="Share of requests that must meet both limits.")
    ] = 0.9,
    requests: shared.RequestsOption = 3000,
    seeds: shared.SeedsOption = 3,
    arrivals: shared.ArrivalsOption = "",
    kv_tokens: shared.PoolOption = None,
    config: ConfigOption = None,
    json_file: shared.ResultOption = None,
    plots: shared.PlotsOption = None,
) -> None:
    """Search the split of a fleet, and no split, for the highest goodput per GPU."""
    from sim.plan_command import PlanQuestion
    from sim.plan_command import plan as run

    with shared.asking():
        question = PlanQuestion(
            shared.setting(
                trace=trace,
                hardware=hardware,
                slo_ttft=slo_ttft,
                slo_tpot=slo_tpot,
                seeds=seeds,
                requests=requests,
                arrivals=arrivals,
                kv_tokens=kv_tokens,
                config=config,
                json_file=json_file,
                plots=plots,
            ),
            gpus=gpus,
            policy=policy,
            attainment=attainment,
        )
        run(question, Console())
