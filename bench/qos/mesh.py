"""`make bench-qos-mesh`: the same question to a running mesh.

Real router and admission processes around workers that take the time of a declared cost, so that
two cores can offer them three times what they compute. Arrivals are random (Poisson), classes and
prompt lengths too, and the same for each policy. Its capacity is what a crowd of clients, each with
one request at a time, gets served per second. Whoever was served outside its targets counts as
wasted: workers do not turn away what was accepted. The degradation ladder is on.
"""

import asyncio
import random
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer
import uvloop

from baton.client import Completion, Prompt, RequestOptions, RouterClient
from baton.errors import BatonError, OverloadedError
from baton.requests import Priority, SamplingParams
from bench.mesh import MeshPlan, running_mesh
from bench.prompts import VOCAB
from bench.qos.answers import Answered, LoadFigures, figures_of, show
from bench.qos.scenarios import HIGH_SHARE, LOADS, LOW_SHARE, POLICIES
from bench.report import emit, note, steps

TTFT_S = 2.0
TPOT_S = 0.05
PREFILL, DECODE = 2, 2
PACE = ("--step-ms", "10", "--prefill-token-us", "1000", "--transfer-ms", "1")
PROMPT_TOKENS = (40, 120, 250, 400, 800)
OUTPUT_TOKENS = (8, 16, 32, 64)

_CROWD = 24
_TIMEOUT_S = 20.0
_NORMAL_LOAD = 0.5
_OVERLOAD = 2.0


@dataclass(frozen=True, slots=True)
class Ask:
    """One request, and how long after the first it comes."""

    after_s: float
    priority: Priority
    prompt_tokens: int
    output_tokens: int


def asks(seed: int, rate_per_s: float, duration_s: float) -> Iterator[Ask]:
    """Yields the requests of one load; classes do not depend on what a request is like."""
    rng = random.Random(f"asks {seed}")  # noqa: S311 - not for secrets
    after_s = rng.expovariate(rate_per_s)
    while after_s < duration_s:
        draw = rng.random()
        low = Priority.LOW if draw < HIGH_SHARE + LOW_SHARE else Priority.NORMAL
        priority = Priority.HIGH if draw < HIGH_SHARE else low
        yield Ask(after_s, priority, rng.choice(PROMPT_TOKENS), rng.choice(OUTPUT_TOKENS))
        after_s += rng.expovariate(rate_per_s)


class Crowd:
    """Clients of one mesh. Every prompt is new, so that no cache helps."""

    def __init__(self, client: RouterClient, seed: int) -> None:
        self._client = client
        self._rng = random.Random(f"prompts {seed}")  # noqa: S311 - not for secrets

    async def ask(self, ask: Ask) -> Answered:
        """Sends one request and returns what became of it."""
        ids = tuple(self._rng.randrange(1, VOCAB) for _ in range(ask.prompt_tokens))
        sampling = SamplingParams(max_tokens=ask.output_tokens, temperature=0.0, ignore_eos=True)
        options = RequestOptions(sampling=sampling, priority=ask.priority, timeout_s=_TIMEOUT_S)
        sent_s, first_s, end = time.monotonic(), None, None
        try:
            async for part in self._client.generate(Prompt(input_ids=ids), options):
                first_s = first_s or time.monotonic()
                if isinstance(part, Completion):
                    end = part
        except OverloadedError as error:
            return Answered(ask.priority, ask.prompt_tokens, reason=error.reason, is_rejected=True)
        except BatonError as error:
            return Answered(ask.priority, ask.prompt_tokens, reason=error.reason or "error")
        assert first_s is not None
        assert end is not None
        return Answered(
            ask.priority,
            ask.prompt_tokens,
            first_s - sent_s,
            end.timing.tpot_s,
            degradations=end.degradations,
        )

    async def capacity_per_s(self, seconds: float) -> float:
        """Returns how many requests are served per second when clients always wait for some."""
        begun_s, served = time.monotonic(), 0
        requests = asks(seed=0, rate_per_s=1e3, duration_s=3600.0)

        async def client() -> None:
            nonlocal served
            for ask in requests:
                await self.ask(replace(ask, priority=Priority.HIGH))
                # The first third lets workers and admission learn what things cost.
                elapsed_s = time.monotonic() - begun_s
                served += seconds / 3 < elapsed_s <= seconds
                if elapsed_s > seconds:
                    return

        await asyncio.gather(*(client() for _ in range(_CROWD)))
        return served / (seconds * 2 / 3)

    async def offer(self, seed: int, rate_per_s: float, duration_s: float) -> list[Answered]:
        """Sends every request at its moment, whatever became of those before."""
        begun_s, running = time.monotonic(), []
        for ask in asks(seed, rate_per_s, duration_s):
            await asyncio.sleep(begun_s + ask.after_s - time.monotonic())
            running.append(asyncio.ensure_future(self.ask(ask)))
        return list(await asyncio.gather(*running))


@dataclass(slots=True)
class Measured:
    """One policy on a mesh of its own."""

    capacity_per_s: float
    loads: dict[float, LoadFigures]


async def measure(
    policy: str, duration_s: float, capacity_per_s: float | None, directory: Path
) -> Measured:
    """Offers all loads to a fresh mesh; its capacity is measured where none is given."""
    settings = {
        "BATON_QOS__POLICY": policy,
        "BATON_QOS__TTFT_SLO_MS": str(TTFT_S * 1e3),
        "BATON_QOS__TPOT_SLO_MS": str(TPOT_S * 1e3),
    }
    plan = MeshPlan(prefill=PREFILL, decode=DECODE, pace=PACE, settings=settings)
    async with running_mesh(plan, directory) as mesh, RouterClient(mesh.router_address) as client:
        crowd = Crowd(client, seed=1)
        found_per_s = await crowd.capacity_per_s(duration_s)
        measured = Measured(capacity_per_s or found_per_s, {})
        for number, load in enumerate(LOADS):
            rate_per_s = load * measured.capacity_per_s
            answers = await crowd.offer(number, rate_per_s, duration_s)
            measured.loads[load] = figures_of(answers, TTFT_S, TPOT_S)
            note(f"{policy} {load:g}x ({rate_per_s:.1f}/s): {measured.loads[load].line()}")
        return measured


def figures(found: dict[str, Measured]) -> dict[str, float | None]:
    """Returns the figures of the JSON line."""
    own = found["predictive"].loads
    high, low = own[_OVERLOAD].classes[Priority.HIGH], own[_OVERLOAD].classes[Priority.LOW]
    rejected = {f"rejected_2x_{name}": it.loads[_OVERLOAD].rejected for name, it in found.items()}
    wasted = {
        f"wasted_prefill_2x_{name}": float(it.loads[_OVERLOAD].wasted_tokens)
        for name, it in found.items()
    }
    ttft = (low.ttft_p50_s, high.ttft_p50_s)
    return {
        "rejected_share_normal": own[_NORMAL_LOAD].rejected,
        "high_attainment_2x": high.attainment,
        "ttft_ratio_low_to_high_2x": ttft[0] / ttft[1] if ttft[0] and ttft[1] else None,
        **rejected,
        **wasted,
    }


def main() -> None:
    """Runs the command line."""
    typer.run(_command)


def _command(
    seconds: Annotated[float, typer.Option(help="Seconds of each load.")] = 12.0,
    record: Annotated[bool, typer.Option(help="Keep the result in bench/results.")] = False,
) -> None:
    """Compare the admission policies in a mesh."""
    found: dict[str, Measured] = {}
    capacity_per_s: float | None = None
    for policy in steps(POLICIES, "policies"):
        with tempfile.TemporaryDirectory() as temporary:
            run = measure(policy, seconds, capacity_per_s, Path(temporary))
            found[policy] = uvloop.run(run)
        capacity_per_s = found[policy].capacity_per_s
    show({name: it.loads for name, it in found.items()})
    details: dict[str, Any] = {
        "capacity_per_s": capacity_per_s,
        "seconds": seconds,
        "targets_s": {"ttft": TTFT_S, "tpot": TPOT_S},
        "workers": {"prefill": PREFILL, "decode": DECODE, "pace": " ".join(PACE)},
        "policies": {
            name: {f"{load:g}x": it.details() for load, it in measured.loads.items()}
            for name, measured in found.items()
        },
    }
    emit("bench-qos-mesh", figures(found), details, record)


if __name__ == "__main__":
    main()
