"""Fleets in which some decode workers only pair with prefill workers and others only work alone."""

import random

import pytest

from baton.config import SplitPolicy
from services.router.choice import make_policy
from services.router.policies.latency import LatencyPolicy, LatencySettings
from services.router.policies.mixed import MixedFleetPolicy
from services.router.policy import DecodeView, PrefillView, RoundRobinPolicy, RouteRequest

PREFILL = [PrefillView("p0", "p0", "p:1")]
PAIRING = DecodeView("pairing", "a", "a:1", prefills_locally=False)
ALONE = DecodeView("alone", "b", "b:1", takes_prefilled=False)


def mixed() -> MixedFleetPolicy:
    return MixedFleetPolicy(RoundRobinPolicy(), 256, 2)


@pytest.mark.parametrize(("tokens", "queue", "expected"), [
    (1000, 0, "pairing"), (100, 0, "alone"), (1000, 2, "alone"),
])  # fmt: skip
def test_rule_chooses_the_kind_of_worker(tokens: int, queue: int, expected: str) -> None:
    prefill = [PrefillView("p0", "p0", "p:1", queue_length=queue)]

    decision = mixed().choose(RouteRequest(tokens), prefill, [PAIRING, ALONE])

    assert decision.decode.worker_id == expected


def test_cached_prefix_makes_a_long_prompt_short() -> None:
    holder = DecodeView("alone", "b", "b:1", takes_prefilled=False, cached_tokens=900)

    decision = mixed().choose(RouteRequest(1000), PREFILL, [PAIRING, holder])

    assert decision.decode.worker_id == "alone"


@pytest.mark.parametrize("decode", [[PAIRING], [ALONE], [PAIRING, PAIRING]])
def test_one_kind_alone_takes_everything(decode: list[DecodeView]) -> None:
    for tokens in (10, 10_000):
        assert mixed().choose(RouteRequest(tokens), PREFILL, decode).decode in decode


def test_every_policy_that_does_not_predict_knows_both_kinds() -> None:
    for name in ("weighted", "least_loaded", "power_of_two", "round_robin"):
        policy = make_policy(SplitPolicy(policy=name), 0.5)
        decision = policy.choose(RouteRequest(1000), PREFILL, [PAIRING, ALONE])
        assert decision.decode.worker_id == "pairing"
        assert policy.name == decision.policy == name


def latency() -> LatencyPolicy:
    return LatencyPolicy(LatencySettings(), random.Random(0))


def test_prediction_offers_each_worker_only_what_it_can_do() -> None:
    decision = latency().choose(RouteRequest(1000), PREFILL, [PAIRING, ALONE])

    offered = {(option.decode.worker_id, option.prefill is not None) for option in decision.options}
    assert offered == {("pairing", True), ("alone", False)}


def test_pairing_worker_is_tried_even_when_every_queue_is_full() -> None:
    busy = [PrefillView("p0", "p0", "p:1", queue_length=99)]

    decision = latency().choose(RouteRequest(1000), busy, [PAIRING])

    assert decision.chosen is not None
    assert decision.chosen.prefill is not None


def test_pairing_worker_without_prefill_workers_is_still_a_decision() -> None:
    assert latency().choose(RouteRequest(1000), [], [PAIRING]).decode is PAIRING
