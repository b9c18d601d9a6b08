"""What the autoscaler would do, printed and not done."""

import asyncio

import typer

from baton.process import Surroundings
from baton.state.background import running
from baton.state.connect import REDIS_ERRORS
from baton.state.fleet import FleetView
from baton.state.traffic import TrafficReader
from services.autoscaler.app import Pacing, make_policy
from services.autoscaler.observer import Observer
from services.autoscaler.orchestrators.base import Orchestrator, OrchestratorError
from services.autoscaler.state import Decision, FleetState, Pool


async def advise(around: Surroundings, orchestrator: Orchestrator, pacing: Pacing) -> None:
    """Prints a line per pool and look until told to stop."""
    fleet = FleetView(around.redis)
    observer = Observer(fleet, TrafficReader(around.redis), orchestrator)
    policy = make_policy(around.config, pacing, flips=orchestrator.moves)
    try:
        async with running(fleet.run()):
            await fleet.wait_synced()
            while not around.stop.is_set():
                now_s = asyncio.get_running_loop().time()
                try:
                    seen = await observer.look()
                    for line in advice(seen, policy.decide(now_s, seen)):
                        typer.echo(line)
                except (OrchestratorError, *REDIS_ERRORS) as error:
                    typer.echo(f"cannot look: {error}", err=True)
                await _pause(around.stop, pacing.interval_s)
    finally:
        await orchestrator.close()


def advice(seen: FleetState, decision: Decision) -> list[str]:
    """Returns one line per pool: what is there, what should be, why, and the numbers."""
    lines = []
    for pool in Pool:
        state, target = seen.pool(pool), decision.target(pool)
        numbers = " ".join(f"{name}={value:.4g}" for name, value in target.numbers.items())
        lines.append(
            f"{pool.value}: {state.ready} ready + {state.starting} starting -> "
            f"{target.replicas} {target.reason.value} {numbers}".rstrip()
        )
    return lines


async def _pause(stop: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await stop.wait()
    except TimeoutError:
        return
