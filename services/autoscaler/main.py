"""The autoscaler's process: `python -m services.autoscaler.main`."""

import enum
import logging
from collections.abc import Callable
from typing import Annotated

import typer

from baton.errors import StartupError
from baton.process import (
    Advertise,
    ConfigFile,
    Host,
    Name,
    Port,
    ProcessOptions,
    Surroundings,
    run_process,
    stop_when_lost,
)
from baton.state.background import running
from services.autoscaler.advice import advise
from services.autoscaler.app import Pacing, running_autoscaler
from services.autoscaler.bursts import MEMORY_S
from services.autoscaler.orchestrators.base import Orchestrator, OrchestratorError
from services.autoscaler.orchestrators.compose import ComposeOrchestrator
from services.autoscaler.orchestrators.local import LocalOrchestrator
from services.autoscaler.state import Pool

logger = logging.getLogger(__name__)


class Kind(enum.StrEnum):
    """What starts and stops workers."""

    LOCAL = "local"
    COMPOSE = "compose"
    KUBERNETES = "kubernetes"


def serve(
    config: ConfigFile = None,
    host: Host = "",
    port: Port = None,
    name: Name = "",
    advertise: Advertise = "",
    orchestrator: Annotated[Kind, typer.Option(help="What starts and stops workers.")] = Kind.LOCAL,
    control: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="local: where the stack listens.")
    ] = "",
    prefill: Annotated[
        str, typer.Option(help="compose, kubernetes: name of the prefill service or Deployment.")
    ] = "prefill",
    decode: Annotated[
        str, typer.Option(help="compose, kubernetes: name of the decode service or Deployment.")
    ] = "decode",
    namespace: Annotated[str, typer.Option(help="kubernetes: where they are.")] = "default",
    budget: Annotated[
        int | None, typer.Option(min=2, help="Most workers of both pools together.")
    ] = None,
    interval: Annotated[float, typer.Option(min=0.2, help="Seconds between two looks.")] = 5.0,
    hold: Annotated[
        float, typer.Option(min=0, help="Seconds that a pool keeps the size it needed last.")
    ] = 90.0,
    learn: Annotated[
        float, typer.Option(min=0, help="Seconds after its start without making a pool smaller.")
    ] = 900.0,
    burst_memory: Annotated[
        float, typer.Option(min=0, help="Seconds that bursts are remembered.")
    ] = MEMORY_S,
    only_advise: Annotated[
        bool, typer.Option("--advise", help="Print decisions and do nothing.")
    ] = False,
) -> None:
    """Keep both worker pools at the size that demand needs, until told to stop."""
    pacing = Pacing(
        interval_s=interval,
        hold_s=hold,
        learn_s=learn,
        burst_memory_s=burst_memory,
        budget=budget,
    )
    names = {Pool.PREFILL: prefill, Pool.DECODE: decode}

    async def run(around: Surroundings) -> None:
        asked = make_orchestrator(orchestrator, control, names, namespace)
        if only_advise:
            await advise(around, asked, pacing)
        else:
            await _serve(around, asked, pacing)

    options = ProcessOptions(config, host, port, name, advertise)
    run_process("autoscaler", options, run)


async def _serve(around: Surroundings, orchestrator: Orchestrator, pacing: Pacing) -> None:
    async with running_autoscaler(
        around.config, around.listening, around.redis, around.telemetry, orchestrator, pacing
    ) as app:
        logger.info("autoscaler listening address=%s", app.address)
        async with running(stop_when_lost(app.registration, around.stop)):
            await around.stop.wait()


def make_orchestrator(
    kind: Kind, control: str, names: dict[Pool, str], namespace: str
) -> Orchestrator:
    """Returns what the options name. Raises StartupError when it cannot be had."""
    makers: dict[Kind, Callable[[], Orchestrator]] = {
        Kind.LOCAL: lambda: _local(control),
        Kind.COMPOSE: lambda: ComposeOrchestrator(names),
        Kind.KUBERNETES: lambda: _kubernetes(names, namespace),
    }
    return makers[kind]()


def _local(control: str) -> Orchestrator:
    if not control:
        raise StartupError(
            "the local orchestrator is part of `baton up --autoscale`, which names its --control"
        )
    return LocalOrchestrator(control)


def _kubernetes(names: dict[Pool, str], namespace: str) -> Orchestrator:
    try:
        from services.autoscaler.orchestrators.kubernetes import KubernetesOrchestrator
    except ImportError as error:
        raise StartupError(
            f"Kubernetes needs the extra `kubernetes`: pip install 'baton[kubernetes]' ({error})"
        ) from error
    try:
        return KubernetesOrchestrator(names, namespace)
    except OrchestratorError as error:
        raise StartupError(str(error)) from error


def main() -> None:
    """Runs the command line."""
    typer.run(serve)


if __name__ == "__main__":
    main()
