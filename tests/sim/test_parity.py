"""The mesh and the simulator decide the same on the same requests."""

import asyncio

import pytest

from bench.parity.asks import Ask
from bench.parity.decisions import compare_decisions

pytestmark = pytest.mark.e2e


def test_mesh_and_simulator_decide_the_same() -> None:
    # Three families of prompts and single ones, long and short, apart and in pairs. First both
    # kinds of workers measure themselves, or the simulator would know no costs.
    warm_up = [Ask(0.03 * n, 40 + 9 * n, 4, family=9) for n in range(80)]
    asks = [
        Ask(
            at_s=0.25 * n + (0.02 if n % 3 else 0.0),
            prompt_tokens=(90, 700, 1300, 260, 500)[n % 5] + n,
            output_tokens=6 + n % 7,
            family=n % 3,
            shared_tokens=(0, 640, 1216, 0, 448)[n % 5],
        )
        for n in range(30)
    ]
    parity = asyncio.run(compare_decisions(asks, prefill=2, decode=2, warm_up=warm_up))
    assert not parity.differences, "\n".join(parity.differences)
    assert parity.agreed == len(asks)
    assert {it.is_remote for it in parity.simulated} == {True, False}
    assert any(it.cached_tokens for it in parity.simulated)
