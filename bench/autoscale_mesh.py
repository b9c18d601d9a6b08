"""A load step on a real mesh that sizes itself: 1x, 4x, 1x, with local worker processes."""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from baton.client import Completion, Prompt, RequestOptions, RouterClient
from baton.errors import BatonError
from baton.local.plan import StackOptions
from baton.local.roles import Role
from baton.local.stack import Stack
from baton.requests import SamplingParams

REQUEST_TIMEOUT_S = 60.0
SETTLE_S = 60.0
_SAMPLE_EVERY_S = 0.5
_TOKENS = range(300, 4000)


@dataclass(frozen=True, slots=True)
class LoadStep:
    """What is sent: `rate_per_s` requests, `factor` times as many in the middle phase.

    Times in seconds, lengths in tokens.
    """

    rate_per_s: float
    factor: float = 4.0
    phase_s: float = 25.0
    prompt_tokens: int = 1500
    output_tokens: int = 48
    autoscale: tuple[str, ...] = (
        "--interval",
        "1",
        "--hold",
        "8",
        "--learn",
        "0",
        "--burst-memory",
        "10",
    )
    seed: int = 1


@dataclass(slots=True)
class StepResult:
    """What came of it. `sizes` are ready workers by pool over time."""

    sent: int = 0
    failed: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    sizes: list[tuple[float, int, int]] = field(default_factory=list)
    peak: tuple[int, int] = (0, 0)
    last: tuple[int, int] = (0, 0)


class Moves(NamedTuple):
    """Seconds until a worker served: started cold, come over to prefill, and back to decode."""

    cold_start_s: float
    to_prefill_s: float
    to_decode_s: float


async def run_moves(settings: Mapping[str, str], run_dir: Path) -> Moves:
    """Changes the role of an idle worker and changes it back."""
    options = StackOptions(prefill=1, decode=2, router_port=0, run_dir=run_dir, environ=settings)
    async with Stack(options) as stack:
        cold_s = stack.member("decode-0").start_s
        there = stack.member(await stack.move_worker("decode-0"))
        there_s = there.move_s
        back_s = stack.member(await stack.move_worker(there.name)).move_s
    assert cold_s is not None
    assert there_s is not None
    assert back_s is not None
    return Moves(cold_s, there_s, back_s)


async def run_step(
    step: LoadStep,
    settings: Mapping[str, str],
    run_dir: Path,
    leader_dies_after_s: float | None = None,
) -> StepResult:
    """Runs the mesh, the load and the fleet's way back to its smallest size; then stops all.

    `settings` are BATON_ variables for all processes.
    With `leader_dies_after_s` the autoscaler is killed so long after the load went up.
    """
    result = StepResult()
    options = StackOptions(
        prefill=1,
        decode=1,
        router_port=0,
        run_dir=run_dir,
        environ=settings,
        autoscale=step.autoscale,
    )
    async with Stack(options) as stack, RouterClient(stack.router_address) as client:
        started_s = time.monotonic()
        sampling = asyncio.create_task(_sample(stack, result, started_s))
        killer = asyncio.create_task(_kill_leader(stack, step, leader_dies_after_s))
        try:
            await _load(client, step, result)
            await _wait_small(stack, result)
        finally:
            for task in (sampling, killer):
                task.cancel()
            await asyncio.gather(sampling, killer, return_exceptions=True)
    sizes = [(prefill, decode) for _, prefill, decode in result.sizes]
    result.peak = (max(p for p, _ in sizes), max(d for _, d in sizes))
    result.last = sizes[-1]
    return result


async def _load(client: RouterClient, step: LoadStep, result: StepResult) -> None:
    rng = random.Random(step.seed)  # noqa: S311 - not for secrets
    async with asyncio.TaskGroup() as requests:
        for factor in (1.0, step.factor, 1.0):
            ends_s = time.monotonic() + step.phase_s
            while (now_s := time.monotonic()) < ends_s:
                prompt = tuple(rng.choice(_TOKENS) for _ in range(step.prompt_tokens))
                requests.create_task(_request(client, step, prompt, result))
                gap_s = rng.expovariate(step.rate_per_s * factor)
                await asyncio.sleep(min(gap_s, ends_s - now_s))


async def _request(
    client: RouterClient, step: LoadStep, prompt: tuple[int, ...], result: StepResult
) -> None:
    sampling = SamplingParams(max_tokens=step.output_tokens, temperature=0.0, ignore_eos=True)
    options = RequestOptions(sampling=sampling, timeout_s=REQUEST_TIMEOUT_S)
    result.sent += 1
    tokens = 0
    try:
        async for part in client.generate(Prompt(input_ids=prompt), options):
            if not isinstance(part, Completion):
                tokens += len(part.output_ids)
    except BatonError as error:
        result.failed += 1
        result.errors[error.reason] += 1
        return
    if tokens != step.output_tokens:
        result.failed += 1
        result.errors["WRONG_LENGTH"] += 1


async def _sample(stack: Stack, result: StepResult, started_s: float) -> None:
    while True:
        sizes = [
            sum(it.role is role and it.is_ready for it in stack.members)
            for role in (Role.PREFILL, Role.DECODE)
        ]
        result.sizes.append((round(time.monotonic() - started_s, 1), sizes[0], sizes[1]))
        await asyncio.sleep(_SAMPLE_EVERY_S)


async def _wait_small(stack: Stack, result: StepResult) -> None:
    """Returns when both pools are down to one worker, or after SETTLE_S."""
    deadline_s = time.monotonic() + SETTLE_S
    while time.monotonic() < deadline_s:
        if result.sizes[-1][1:] == (1, 1):
            return
        await asyncio.sleep(_SAMPLE_EVERY_S)


async def _kill_leader(stack: Stack, step: LoadStep, after_s: float | None) -> None:
    if after_s is not None:
        await asyncio.sleep(step.phase_s + after_s)
        stack.kill("autoscaler-0")
