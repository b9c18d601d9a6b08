"""The split by prediction: row by row, what always holds, and what a worker tells about it."""

import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baton.config import SplitPolicy as SplitSection
from baton.engine.base import PrefillSample, StepSample
from baton.latency import OUTPUT_TOKENS, TRUSTED_SAMPLES, CostModel
from baton.v1 import types_pb2
from services.decode.main import make_split_policy
from services.decode.policy import (
    LocalOutlook,
    Outlook,
    PredictiveSplitPolicy,
    RemoteOutlook,
    SplitReason,
    ThresholdSplitPolicy,
    preferring_local,
)
from tests.support.fake_engine import FakeEngine, generated
from tests.support.waiting import eventually
from tests.support.worker_fleet import WorkerFleet, read

THRESHOLD = ThresholdSplitPolicy(prompt_length_threshold=256, prefill_queue_max=4)
POLICY = PredictiveSplitPolicy(THRESHOLD, tpot_price=10.0, chunk_tokens=256)
COSTS = CostModel(
    prefill=(0.01, 1e-3, 0.0),
    step=(0.01, 1e-3, 0.0),
    transfer=(0.002, 1e-9),
    prefill_samples=TRUSTED_SAMPLES,
)
LONG = tuple(range(1, 400))


def outlook(*waits_s: float | None, **local: int) -> Outlook:
    """A prompt of 500 tokens takes 0.51 s everywhere; 500 kB of KV take 2.5 ms."""
    remotes = [
        None if wait_s is None else RemoteOutlook(f"p{index}", wait_s, 0.51)
        for index, wait_s in enumerate(waits_s)
    ]
    return Outlook(LocalOutlook(COSTS, kv_bytes_per_token=1000, **local), remotes)


@pytest.mark.parametrize(
    ("seen", "candidates", "reason"),
    [
        pytest.param(outlook(0.0), (), SplitReason.LOCAL_FASTER, id="nobody to disturb"),
        pytest.param(outlook(0.0, sequences=1), (0,), SplitReason.REMOTE_FASTER, id="one stream"),
        pytest.param(outlook(0.1, sequences=1), (), SplitReason.LOCAL_FASTER, id="remote waits"),
        pytest.param(outlook(0.1, sequences=9), (0,), SplitReason.REMOTE_FASTER, id="many streams"),
        pytest.param(
            outlook(0.1, queue_length=1, queued_tokens=500),
            (0,),
            SplitReason.REMOTE_FASTER,
            id="local waits longer",
        ),
        pytest.param(
            outlook(0.3, 0.0, 9.0, sequences=9),
            (1, 0),
            SplitReason.REMOTE_FASTER,
            id="fastest first, without those slower than local",
        ),
        pytest.param(
            outlook(None, 0.0, sequences=9), (1,), SplitReason.REMOTE_FASTER, id="one unmeasured"
        ),
        pytest.param(outlook(None), (0,), SplitReason.LONG_PREFILL, id="none measured"),
        pytest.param(outlook(), (), SplitReason.NO_PREFILL_WORKER, id="no prefill worker"),
    ],
)
def test_prompt_goes_where_its_first_token_costs_least(
    seen: Outlook, candidates: tuple[int, ...], reason: SplitReason
) -> None:
    decision = POLICY.decide(500, 0, [0] * len(seen.remotes), seen)
    assert (decision.candidates, decision.reason) == (candidates, reason)
    assert decision.remote is bool(candidates)


def test_counterfactual_is_recorded() -> None:
    prediction = POLICY.decide(500, 0, [0], outlook(0.25, sequences=4)).prediction
    assert prediction is not None
    assert prediction.local_ttft_s == pytest.approx(0.51 + 2 * 0.014)
    assert prediction.remote_ttft_s == pytest.approx(0.25 + 0.51 + 0.0025)
    assert prediction.interference_s == pytest.approx(10 * 4 * 0.51 / OUTPUT_TOKENS)


def test_full_queue_is_not_tried_however_fast() -> None:
    decision = POLICY.decide(500, 0, [4, 0], outlook(0.0, 0.1, sequences=9))
    assert decision.candidates == (1,)


@pytest.mark.parametrize(
    ("seen", "reason"),
    [
        pytest.param(outlook(0.0, sequences=1), SplitReason.DEGRADED_TO_LOCAL, id="few streams"),
        pytest.param(
            outlook(0.0, queue_length=3, queued_tokens=1500),
            SplitReason.DEGRADED_TO_LOCAL,
            id="only itself waits",
        ),
        pytest.param(outlook(0.0, sequences=40), SplitReason.REMOTE_FASTER, id="many would stall"),
        pytest.param(outlook(None), SplitReason.DEGRADED_TO_LOCAL, id="nothing is known"),
    ],
)
def test_degraded_prompt_stays_here_unless_the_streams_here_pay_for_it(
    seen: Outlook, reason: SplitReason
) -> None:
    assert preferring_local(POLICY.decide(500, 0, [0], seen)).reason is reason


def test_where_nothing_is_measured_the_chapters_rule_decides() -> None:
    unmeasured = Outlook(LocalOutlook(CostModel()), [None])
    for prompt in (256, 257):
        assert POLICY.decide(prompt, 0, [0], unmeasured) == THRESHOLD.decide(prompt, 0, [0])


def test_unmeasured_worker_takes_prompts_to_last_as_long_as_at_the_prefill_worker() -> None:
    """It may compute one when the prefill worker's queue is long, and so gets to be measured."""
    local = LocalOutlook(CostModel(), queued_tokens=250)
    decision = POLICY.decide(500, 0, [2], Outlook(local, [RemoteOutlook("p0", 2.0, 0.5)]))
    assert decision.reason is SplitReason.LOCAL_FASTER
    assert decision.prediction is not None
    assert decision.prediction.local_ttft_s == pytest.approx(0.5 + 0.25)
    # What the prefill worker need not compute again, this one has to.
    cached = Outlook(LocalOutlook(CostModel()), [RemoteOutlook("p0", 2.0, 0.1, cached_tokens=400)])
    decision = POLICY.decide(500, 0, [2], cached)
    assert decision.prediction is not None
    assert decision.prediction.local_ttft_s == pytest.approx(0.5)


@given(
    prompt=st.integers(1, 20_000),
    cached_share=st.floats(0, 1),
    queues=st.lists(st.integers(0, 8), max_size=4),
    wait_s=st.floats(0, 10),
    sequences=st.integers(0, 50),
)
def test_remote_is_only_what_beats_local_and_has_room(
    prompt: int, cached_share: float, queues: list[int], wait_s: float, sequences: int
) -> None:
    cached = int(prompt * cached_share)
    seen = outlook(*[wait_s * index for index in range(len(queues))], sequences=sequences)
    decision = POLICY.decide(prompt, cached, queues, seen)
    assert all(queues[index] < THRESHOLD.prefill_queue_max for index in decision.candidates)
    assert decision.remote == bool(decision.candidates)
    if decision.prediction is not None:
        local_s = decision.prediction.local_ttft_s + decision.prediction.interference_s
        assert decision.remote == (decision.prediction.remote_ttft_s < local_s)
    more = outlook(*[wait_s * index for index in range(len(queues))], sequences=sequences + 1)
    if decision.remote:
        assert POLICY.decide(prompt, cached, queues, more).remote, "more streams, more reason"


def test_routers_policy_brings_the_split_rule_along(fleet: WorkerFleet) -> None:
    def made(policy: str) -> object:
        section = SplitSection(policy=policy)  # type: ignore[arg-type]
        return make_split_policy(fleet.config.model_copy(update={"split_policy": section}))

    assert isinstance(made("latency"), PredictiveSplitPolicy)
    for policy in ("weighted", "round_robin", "least_loaded", "power_of_two"):
        assert isinstance(made(policy), ThresholdSplitPolicy)


async def test_measured_worker_decides_by_prediction_and_tells_the_other_way(
    fleet: WorkerFleet,
) -> None:
    prefill = await fleet.prefill("p0", FakeEngine(blocks=256))
    decode = await fleet.decode("d0", FakeEngine(blocks=256))
    rng = random.Random(1)
    for size in [rng.randint(20, 3000) for _ in range(60)]:
        decode.engine.prefill_samples.append(PrefillSample(size, 0, 0.1 + 1e-3 * size))
        decode.engine.step_samples.append(StepSample(size, size, 0.01))
    await eventually(lambda: not decode.engine.prefill_samples)

    fast, slow = prefill.candidate(), prefill.candidate()
    fast.expected_wait_s, fast.expected_prefill_s = 0.0, 0.001
    slow.expected_wait_s, slow.expected_prefill_s = 60.0, 0.001
    prompts = ((*LONG[:number], *LONG) for number in itertools.count(1))
    for candidate, mode, reason in (
        (fast, types_pb2.PREFILL_MODE_REMOTE, "REMOTE_FASTER"),
        (slow, types_pb2.PREFILL_MODE_LOCAL, "LOCAL_FASTER"),
    ):
        prompt = next(prompts)
        answer = await read(fleet.ask(decode, prompt, [candidate]))
        assert answer.tokens == generated(prompt, 8)
        told = answer.prefilled
        assert (told.mode, told.reason) == (mode, reason)
        assert told.predicted_local_ttft_s > 0.3
        assert told.predicted_remote_ttft_s == pytest.approx(
            candidate.expected_wait_s + 0.001, abs=0.3
        )
        assert told.predicted_interference_s == 0

    plain = await read(fleet.ask(decode, next(prompts), [prefill.candidate()]))
    assert plain.prefilled.reason == "LONG_PREFILL"
    assert not plain.prefilled.HasField("predicted_local_ttft_s")
