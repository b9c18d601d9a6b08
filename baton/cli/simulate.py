"""`baton simulate`: a fleet and its policies on a recorded workload, in simulated time."""

from typing import Annotated

import typer
from rich.console import Console

from baton.cli import simulation as shared
from baton.cli.common import ConfigOption


def simulate(
    trace: shared.TraceOption = "conversation",
    prefill: Annotated[int, typer.Option(help="Prefill workers.")] = 4,
    decode: Annotated[int, typer.Option(help="Decode workers.")] = 8,
    aggregated: Annotated[int, typer.Option(help="Workers that do both.")] = 0,
    policy: shared.PolicyOption = "latency",
    compare: Annotated[str, typer.Option(help="More policies, separated by commas.")] = "",
    baseline: Annotated[
        bool, typer.Option(help="Compare with an aggregated fleet of the same size.")
    ] = False,
    hardware: shared.HardwareOption = "h100",
    slo_ttft: shared.TtftOption = "",
    slo_tpot: shared.TpotOption = "",
    rate: Annotated[str, typer.Option(help="Load relative to the trace; several by commas.")] = "1",
    seeds: shared.SeedsOption = 3,
    requests: shared.RequestsOption = 0,
    arrivals: shared.ArrivalsOption = "",
    admission: Annotated[bool, typer.Option(help="Let admission decide who enters.")] = True,
    bandwidth: Annotated[float, typer.Option(help="A worker's network. GB per second.")] = 25.0,
    chunk: Annotated[
        int | None, typer.Option(min=16, help="Tokens per step where decodes run.")
    ] = None,
    kv_tokens: shared.PoolOption = None,
    config: ConfigOption = None,
    json_file: shared.ResultOption = None,
    plots: shared.PlotsOption = None,
) -> None:
    """Replay a workload on a simulated fleet that runs the mesh's own policies."""
    from sim.command import Question
    from sim.command import simulate as run

    with shared.asking():
        question = Question(
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
            prefill=prefill,
            decode=decode,
            aggregated=aggregated,
            policies=[policy, *filter(None, compare.split(","))],
            rates=shared.numbers("--rate", rate, ","),
            compares_aggregated=baseline,
            admits_all=not admission,
            bandwidth=bandwidth * 1e9,
            mixed_budget=chunk,
        )
        run(question, Console())
