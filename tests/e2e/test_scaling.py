"""Pools that change under load: no request is lost, no token differs."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from redis.asyncio import Redis

from baton.client import Completion, Prompt, RequestOptions, RouterClient
from baton.engine.simulated.spec import load_spec
from baton.engine.simulated.tokens import answer
from baton.local.plan import StackOptions
from baton.local.roles import Role
from baton.local.stack import Stack
from baton.models import DEFAULT_MODEL
from baton.requests import SamplingParams
from baton.state import keys
from baton.state.connect import connect
from tests.e2e.conftest import Reference
from tests.support.waiting import eventually

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240)]

SETTINGS = {
    "BATON_CONFIG": "",
    "BATON_MESH__REDIS_URL": "",
    "BATON_ENGINE__KIND": "simulated",
    "BATON_QOS__ENABLE_EARLY_REJECTION": "false",
    "BATON_QOS__TTFT_SLO_MS": "1000",
    "BATON_QOS__TPOT_SLO_MS": "9",
}
EMBEDDED = {**SETTINGS, "BATON_ENGINE__KIND": "torch", "BATON_QOS__TPOT_SLO_MS": "30"}
SPEC = load_spec(DEFAULT_MODEL)
TOKENS = 96
EMBEDDED_TOKENS = 32
PROMPT_TOKENS = 700


Question = tuple[tuple[int, ...], list[int]]
"""A prompt and the only right answer to it."""


def simulated_question(rng: random.Random) -> Question:
    prompt = random_prompt(rng)
    return prompt, answer(prompt, TOKENS, SPEC.vocab_size, SPEC.eos_ids)


def random_prompt(rng: random.Random) -> tuple[int, ...]:
    return tuple(rng.randrange(300, 4000) for _ in range(PROMPT_TOKENS))


class Load:
    """Requests that never stop until told; each answer is compared with what it must be."""

    def __init__(self, router: str, clients: int, ask: Callable[[random.Random], Question]) -> None:
        self.done = 0
        self._router = router
        self._clients = clients
        self._ask = ask
        self._stop = asyncio.Event()

    async def run(self) -> None:
        async with RouterClient(self._router) as client, asyncio.TaskGroup() as tasks:
            for number in range(self._clients):
                tasks.create_task(self._client(client, random.Random(number)))

    def stop(self) -> None:
        self._stop.set()

    async def _client(self, client: RouterClient, rng: random.Random) -> None:
        while not self._stop.is_set():
            prompt, wanted = self._ask(rng)
            sampling = SamplingParams(max_tokens=len(wanted), temperature=0.0, ignore_eos=True)
            options = RequestOptions(sampling=sampling, timeout_s=60)
            got: list[int] = []
            async for part in client.generate(Prompt(input_ids=prompt), options):
                if not isinstance(part, Completion):
                    got += part.output_ids
            assert got == wanted
            self.done += 1


@asynccontextmanager
async def loaded(
    stack: Stack,
    clients: int = 8,
    ask: Callable[[random.Random], Question] = simulated_question,
) -> AsyncIterator[Load]:
    load = Load(stack.router_address, clients, ask)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(load.run())
        try:
            yield load
        finally:
            load.stop()


def options(
    tmp_path: Path,
    prefill: int,
    decode: int,
    environ: Mapping[str, str] = SETTINGS,
    **more: object,
) -> StackOptions:
    return StackOptions(
        prefill=prefill,
        decode=decode,
        router_port=0,
        run_dir=tmp_path,
        environ=environ,
        **more,  # type: ignore[arg-type]
    )


async def test_scale_down_and_rolling_restart_lose_nothing(tmp_path: Path) -> None:
    async with Stack(options(tmp_path, 2, 2)) as stack, loaded(stack) as load:
        await eventually(lambda: load.done > 8, timeout_s=60)
        await stack.remove_worker("decode-0")
        await stack.remove_worker("prefill-0")
        await stack.add_worker(Role.DECODE)
        await stack.add_worker(Role.PREFILL)
        for name in ("decode-1", "prefill-1", "decode-2", "prefill-2"):
            await stack.restart(name)
        after = load.done
        await eventually(lambda: load.done > after + 8, timeout_s=60)
    names = {member.name for member in stack.members if member.role.is_worker}
    assert names == {"decode-1", "decode-2", "prefill-1", "prefill-2"}


async def test_workers_change_roles_under_load_and_lose_nothing(tmp_path: Path) -> None:
    async with Stack(options(tmp_path, 2, 2)) as stack, loaded(stack) as load:
        await eventually(lambda: load.done > 8, timeout_s=60)
        processes = dict(stack.processes)
        assert await stack.move_worker("decode-0") == "prefill-2"
        assert await stack.move_worker("prefill-0") == "decode-2"
        assert stack.processes["prefill-2"] == processes["decode-0"]
        assert stack.processes["decode-2"] == processes["prefill-0"]
        after = load.done
        await eventually(lambda: load.done > after + 8, timeout_s=60)
        # Whoever changed its role works like any other, and may end or change back.
        await stack.remove_worker("decode-1")
        await stack.move_worker("prefill-2")
        after = load.done
        await eventually(lambda: load.done > after + 8, timeout_s=60)
    names = {member.name for member in stack.members if member.role.is_worker}
    assert names == {"decode-2", "decode-3", "prefill-1"}


async def test_embedded_workers_keep_their_model_when_they_change_roles(
    tmp_path: Path, reference: Reference
) -> None:
    prompts = [random_prompt(random.Random(number)) for number in range(4)]
    questions = [(it, reference.greedy(list(it), EMBEDDED_TOKENS)) for it in prompts]
    async with (
        Stack(options(tmp_path, 1, 2, EMBEDDED)) as stack,
        loaded(stack, 3, lambda rng: rng.choice(questions)) as load,
    ):
        await eventually(lambda: load.done > 4, timeout_s=60)
        process = stack.processes["decode-0"]
        assert await stack.move_worker("decode-0") == "prefill-1"
        assert await stack.move_worker("prefill-0") == "decode-2"
        assert stack.processes["prefill-1"] == process
        after = load.done
        await eventually(lambda: load.done > after + 4, timeout_s=60)
        loads = stack.log("decode-0").read_text().count("loading weights")
    assert loads == 1


async def test_load_makes_both_pools_grow_whoever_leads(tmp_path: Path) -> None:
    pace = ("--interval", "0.5", "--hold", "5", "--learn", "0", "--burst-memory", "5")
    more = options(tmp_path, 1, 1, autoscale=pace)
    async with Stack(more) as stack:
        redis = connect(stack.redis_url)
        async with loaded(stack, clients=24):
            await eventually(lambda: len(stack.pools.workers(Role.DECODE)) > 1, timeout_s=60)
            first = await leader_of(redis)
            stack.kill("autoscaler-0")
            await eventually(lambda: _ready(stack, Role.DECODE) > 1, timeout_s=60)

        async def is_small_again() -> bool:
            return all(stack.pools.sizes[role].replicas == 1 for role in stack.pools.sizes)

        await eventually(is_small_again, timeout_s=90)
        assert await leader_of(redis) not in ("", first)
        await redis.aclose()


async def leader_of(redis: Redis) -> str:
    holder = await redis.get(keys.autoscaler_leader())
    return holder.decode() if isinstance(holder, bytes) else ""


def _ready(stack: Stack, role: Role) -> int:
    return sum(member.is_ready for member in stack.pools.workers(role))
