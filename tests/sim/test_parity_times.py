"""The simulator is given what was probed, and nothing else."""

import pytest

from baton.client import Completion, Timing
from baton.requests import FinishReason
from bench.parity.asks import Ask, Seen
from bench.parity.probed import Probed
from bench.parity.times import Parity, Part, company, schedule, simulate
from sim.costs.hardware import Hardware
from sim.costs.model import StepCosts
from sim.engine.host import Sharing

STEPS = (8e-3, 1e-3, 0.0)
PROBED = Probed(
    prefill=Hardware("p", "made up", StepCosts((0.0, 2e-4, 0.0), STEPS), 32_000, 1000),
    decode=Hardware("d", "made up", StepCosts((0.0, 5e-4, 0.0), STEPS), 32_000, 1000),
    sharing=Sharing(prefill=1.5, decode=1.2),
    overhead_s=6e-3,
    transfer_s=4e-3,
)


def _seen(sent_s: float, ttft_s: float, tpot_s: float) -> Seen:
    timing = Timing(0, 0, 0, 0, 0, 0, 0, 0, ttft_s, tpot_s, 0)
    completion = Completion(
        "r", "m", FinishReason.LENGTH, 1, 1, 0, timing, "p", "d", False, "", 0, 0, (), ""
    )
    return Seen(sent_s, completion)


def test_a_lone_prompt_takes_what_was_probed() -> None:
    # Far apart: one is computed by the prefill worker, one by the decode worker.
    asks = [Ask(0.0, 1000, 5), Ask(10.0, 100, 5)]
    seen = [_seen(ask.at_s, 0.1, 0.01) for ask in asks]
    far, here = simulate(asks, seen, PROBED)
    assert (far.is_remote, here.is_remote) == (True, False)
    assert far.ttft_s == pytest.approx(6e-3 + 0.2 + 4e-3, abs=1e-3)
    assert here.ttft_s == pytest.approx(6e-3 + 0.05, abs=1e-3)
    assert (far.tpot_s, here.tpot_s) == pytest.approx((9e-3, 9e-3))


def test_errors_are_relative_to_the_mesh() -> None:
    asks = [Ask(10.0 * n, 100, 5) for n in range(3)]
    seen = [_seen(ask.at_s, 0.07, 0.012) for ask in asks]
    parity = Parity([Part(seen, simulate(asks, seen, PROBED), PROBED)], None)
    assert parity.error("ttft", 0.5) == pytest.approx(0.014 / 0.07, rel=1e-3)
    assert parity.error("tpot", 0.99) == pytest.approx(0.25)


def test_a_schedule_is_the_same_for_a_seed() -> None:
    assert schedule(1, 20, 0.5) == schedule(1, 20, 0.5) != schedule(2, 20, 0.5)


def test_company_of_one_part_makes_the_tokens_of_the_next() -> None:
    asks = [Ask(10.0 * n, 100, 5) for n in range(3)]
    seen = [_seen(ask.at_s, 0.07, 0.0108) for ask in asks]
    slower = company(seen, simulate(asks, seen, PROBED))
    assert slower == pytest.approx(1.2)
    made = simulate(asks, seen, PROBED.among(slower))
    assert [it.tpot_s for it in made] == pytest.approx([0.0108] * 3)
    assert made[0].ttft_s == pytest.approx(6e-3 + 0.05, abs=1e-3)
