"""A running mesh of real processes on the default model, and what its answers must be."""

import random
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from baton.local.plan import StackOptions
from baton.local.roles import Role
from baton.local.stack import Stack
from tests.support.mesh import Client, admission_state, is_clean, worker_stats
from tests.support.otlp import OtlpReceiver
from tests.support.reference import Reference
from tests.support.waiting import eventually


class Mesh:
    """One running stack with its trace receiver."""

    def __init__(self, stack: Stack, otlp: OtlpReceiver, reference: Reference) -> None:
        self.stack = stack
        self.otlp = otlp
        self._reference = reference
        self._rng = random.Random(17)

    @property
    def router(self) -> str:
        return self.stack.router_address

    def encode(self, text: str) -> list[int]:
        return list(self._reference.tokenizer.encode(text).ids)

    def decode(self, token_ids: list[int]) -> str:
        return str(self._reference.tokenizer.decode(token_ids))

    def reference(self, input_ids: list[int], max_tokens: int) -> list[int]:
        return self._reference.greedy(input_ids, max_tokens)

    def prompt(self, tokens: int) -> list[int]:
        """Returns token ids that no earlier prompt began with."""
        return [self._rng.randrange(300, 4000) for _ in range(tokens)]

    def workers(self, role: str) -> list[tuple[str, str]]:
        """Returns name and address of the workers that run now."""
        return [
            (member.name, member.address)
            for member in self.stack.members
            if member.role is Role(role) and member.is_ready
        ]

    def addresses(self, role: str) -> list[str]:
        return [address for _, address in self.workers(role)]

    def kill(self, name: str, number: signal.Signals) -> None:
        """Sends a signal to a process of the mesh; dead ones stay dead."""
        self.stack.kill(name, number)

    async def is_clean(self) -> bool:
        """Tells whether no worker holds a block or lease and no permit or request lives."""
        for role in ("prefill", "decode"):
            for address in self.addresses(role):
                if not is_clean(await worker_stats(address, role)):
                    return False
        (admission,) = [m.address for m in self.stack.members if m.role is Role.ADMISSION]
        permits = await admission_state(admission)
        if permits.prefill_permits or permits.decode_permits or permits.queued_requests:
            return False
        client = Client(self.router)
        fleet = await client.fleet()
        await client.close()
        return not fleet.active_requests

    async def trace(self, trace_id: bytes, *wanted: str) -> list[Any]:
        """Returns the spans of a trace once all `wanted` have arrived; processes export apart."""

        def are_there() -> bool:
            return {span.name for span in self.otlp.trace(trace_id)} >= set(wanted)

        await eventually(are_there, timeout_s=10)
        return self.otlp.trace(trace_id)


@pytest.fixture(scope="session")
def reference() -> Reference:
    return Reference()


@asynccontextmanager
async def started_mesh(
    run_dir: Path, reference: Reference, *, prefill: int = 1, decode: int = 1
) -> AsyncIterator[Mesh]:
    """Runs a stack of its own; a worker that dies stays dead."""
    with OtlpReceiver() as otlp:
        options = StackOptions(
            prefill=prefill,
            decode=decode,
            router_port=0,
            run_dir=run_dir,
            is_restarting=False,
            environ={
                "BATON_MESH__OTLP_ENDPOINT": otlp.endpoint,
                "BATON_QOS__TTFT_SLO_MS": "60000",
                "BATON_QOS__LOW_PRIORITY_THRESHOLD_MS": "60000",
            },
        )
        async with Stack(options) as stack:
            yield Mesh(stack, otlp, reference)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def mesh(
    tmp_path_factory: pytest.TempPathFactory, reference: Reference
) -> AsyncIterator[Mesh]:
    async with started_mesh(tmp_path_factory.mktemp("mesh"), reference) as running:
        yield running


@pytest_asyncio.fixture(loop_scope="module")
async def client(mesh: Mesh) -> AsyncIterator[Client]:
    caller = Client(mesh.router)
    yield caller
    await caller.close()
