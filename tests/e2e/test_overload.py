"""More than the mesh can do, end to end: refusals that say when to come back, and the ladder.

Real router and admission processes; the workers take the time of declared costs.
"""

import asyncio
import contextlib
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import pytest
import pytest_asyncio

from baton.client import Completion, Prompt, RequestOptions, RouterClient
from baton.errors import OverloadedError
from baton.ports import free_port
from baton.requests import Priority, SamplingParams
from baton.rpc.channels import open_channel
from baton.v1 import admission_pb2, admission_pb2_grpc
from bench.children import module, running_child
from bench.mesh import MeshPlan, running_mesh
from services.admission.ladder import MAX_TOKENS_CAPPED
from services.admission.policy import TTFT_UNATTAINABLE
from tests.support.waiting import eventually

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240), pytest.mark.asyncio(loop_scope="module")]

HOST = "127.0.0.1"
LONG, USUAL = 400, 32
"""Tokens that answers may have, and those that admission learns as the usual length."""
PACE = ("--step-ms", "1", "--prefill-token-us", "1000", "--transfer-ms", "1")


@dataclass(frozen=True, slots=True)
class Overloaded:
    """A small mesh, and where its admission service tells about itself."""

    client: RouterClient
    admission: "admission_pb2_grpc.AdmissionServiceAsyncStub"
    metrics_url: str

    async def ask(
        self, number: int, priority: Priority, tokens: int = 120, answer: int = LONG
    ) -> Completion | OverloadedError:
        """Sends a prompt that nobody else sends; returns how it ended."""
        sampling = SamplingParams(max_tokens=answer, temperature=0.0, ignore_eos=True)
        options = RequestOptions(sampling=sampling, priority=priority)
        ids = (number + 1, *([7] * (tokens - 1)))
        end: Completion | None = None
        try:
            async for part in self.client.generate(Prompt(input_ids=ids), options):
                end = part if isinstance(part, Completion) else end
        except OverloadedError as error:
            return error
        assert end is not None
        return end

    async def level(self, priority: Priority) -> int:
        """Returns how many steps a class is degraded."""
        request = admission_pb2.AdmissionServiceGetStateRequest()
        state = await self.admission.GetState(request, timeout=5)
        return state.degradation_levels[priority - 1]

    def metrics(self) -> str:
        """Returns what Prometheus would read from admission; nothing while it starts."""
        with contextlib.suppress(URLError), urlopen(self.metrics_url, timeout=5) as answer:
            text: str = answer.read().decode()
            return text
        return ""

    def degradations(self) -> float:
        """Returns how often admission's metrics say that answers were capped."""
        lines = self.metrics().splitlines()
        return sum(
            float(line.rsplit(" ", 1)[1])
            for line in lines
            if line.startswith("baton_admission_degradations") and MAX_TOKENS_CAPPED in line
        )


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def mesh() -> AsyncIterator[Overloaded]:
    async with AsyncExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        plan = MeshPlan(prefill=1, decode=1, pace=PACE, admission=False)
        running = await stack.enter_async_context(running_mesh(plan, directory))
        port, metrics_port = free_port(HOST), free_port(HOST)
        environ = {
            "REDIS_URL": running.redis_url,
            "OTEL_METRICS_EXPORTER": "prometheus",
            "OTEL_EXPORTER_PROMETHEUS_HOST": HOST,
            "OTEL_EXPORTER_PROMETHEUS_PORT": str(metrics_port),
        }
        command = module("services.admission.main", "--name", "admission", "--port", str(port))
        await stack.enter_async_context(running_child("admission", command, directory, environ))
        channel = await stack.enter_async_context(open_channel(f"{HOST}:{port}"))
        client = await stack.enter_async_context(RouterClient(running.router_address))
        stub = admission_pb2_grpc.AdmissionServiceStub(channel)
        mesh = Overloaded(client, stub, f"http://{HOST}:{metrics_port}/metrics")
        await eventually(lambda: _is_asked(mesh), timeout_s=60.0)
        # High is never refused; so many at once teach admission what prompts cost.
        await asyncio.gather(*(mesh.ask(number, Priority.HIGH, 64, USUAL) for number in range(48)))
        yield mesh


async def _is_asked(mesh: Overloaded) -> bool:
    end = await mesh.ask(4000, Priority.HIGH, 16, USUAL)
    assert isinstance(end, Completion)
    return "baton_admission_verdicts" in await asyncio.to_thread(mesh.metrics)


async def test_overload_degrades_some_refuses_others_and_spares_high(mesh: Overloaded) -> None:
    normal = [mesh.ask(100 + number, Priority.NORMAL) for number in range(60)]
    high = [mesh.ask(200 + number, Priority.HIGH, 16) for number in range(3)]
    ends = await asyncio.gather(*normal, *high)
    spared = ends[len(normal) :]
    refused = [end for end in ends if isinstance(end, OverloadedError)]
    capped = [
        end for end in ends if isinstance(end, Completion) and MAX_TOKENS_CAPPED in end.degradations
    ]

    assert all(isinstance(end, Completion) and not end.degradations for end in spared)
    assert {end.reason for end in refused} == {TTFT_UNATTAINABLE}
    assert all(end.retry_after_s is not None and end.retry_after_s > 0 for end in refused)
    assert capped
    assert all(end.completion_tokens < LONG for end in capped)
    assert mesh.degradations() >= len(capped)


async def test_steps_are_undone_when_the_load_is_gone(mesh: Overloaded) -> None:
    crowd = asyncio.gather(*(mesh.ask(300 + number, Priority.NORMAL) for number in range(60)))

    async def is_degraded() -> bool:
        return await mesh.level(Priority.NORMAL) > 0

    await eventually(is_degraded, timeout_s=30.0)
    await crowd
    numbers = iter(range(400, 4000))
    levels = [await mesh.level(Priority.NORMAL)]

    async def is_whole_again() -> bool:
        end = await mesh.ask(next(numbers), Priority.NORMAL, 16)
        levels.append(await mesh.level(Priority.NORMAL))
        return isinstance(end, Completion) and not end.degradations and not levels[-1]

    await eventually(is_whole_again, timeout_s=60.0)
    assert all(after <= before for before, after in pairwise(levels))
