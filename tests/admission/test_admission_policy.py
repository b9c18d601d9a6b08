"""What each policy decides, row by row, with values from its formula."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baton.latency import TRUSTED_SAMPLES, CostModel
from baton.requests import Priority
from services.admission.choice import POLICIES
from services.admission.policies.queue_estimate import (
    QueueEstimatePolicy,
    estimate_ttft_s,
    predict_ttft_s,
)
from services.admission.policies.slo import PredictivePolicy, SloNowPolicy
from services.admission.policy import (
    DECODE_SATURATED,
    DECODE_SLOTS,
    TTFT_UNATTAINABLE,
    Accept,
    DecodePool,
    MeshLoad,
    PermitRequest,
    QosLimits,
    Reject,
    Streams,
    Verdict,
)

LOW, NORMAL, HIGH = Priority.LOW, Priority.NORMAL, Priority.HIGH
COSTS = CostModel(step=(0.01, 0.001, 0.0), step_samples=TRUSTED_SAMPLES)
"""One worker's tokens take 200 ms, the target, with 190 streams."""


class Foreseen:
    """A forecast that a test states."""

    def __init__(self, streams: float, later: float | None = None) -> None:
        self._streams = streams
        self._later = streams if later is None else later

    def at(self, horizon_s: float, *, held_back: bool = False) -> Streams:
        return Streams(self._later if held_back else self._streams, 0.0)


def decide(load: MeshLoad, limits: QosLimits | None = None, **request: object) -> Verdict:
    policy = QueueEstimatePolicy(limits or QosLimits())
    return policy.decide(0.0, load, PermitRequest("r", **request))  # type: ignore[arg-type]


def backlog(prefill_permits: int, prefill_s: float, workers: int = 1) -> MeshLoad:
    return MeshLoad(workers, 1, prefill_permits=prefill_permits, prefill_s=prefill_s)


def decoding(now: float, foreseen: float, later: float | None = None) -> MeshLoad:
    return MeshLoad(
        1,
        1,
        decode=DecodePool(1, COSTS),
        streams=Streams(now, 0.0),
        forecast=Foreseen(foreseen, later),
    )


@pytest.mark.parametrize(
    ("prefill_queue", "prefill_s", "decode_queue", "decode_s", "expected_s"),
    [
        (0, 0.4, 0, 2.0, 0.0),
        (3, 0.4, 0, 2.0, 1.2),
        (0, 0.4, 2, 2.0, 4.0),
        (3, 0.4, 2, 2.0, 5.2),
    ],
)
def test_estimate_is_the_chapters_sum(
    prefill_queue: int, prefill_s: float, decode_queue: int, decode_s: float, expected_s: float
) -> None:
    estimate_s = estimate_ttft_s(prefill_queue, prefill_s, decode_queue, decode_s)
    assert estimate_s == pytest.approx(expected_s)


@pytest.mark.parametrize(
    ("load", "expected_s"),
    [
        pytest.param(backlog(0, 0.4), 0.0, id="idle"),
        pytest.param(backlog(1, 0.4), 0.4, id="one before it"),
        pytest.param(backlog(5, 0.4), 2.0, id="five before it"),
        pytest.param(backlog(5, 0.4, workers=2), 0.8, id="shared by two workers"),
        pytest.param(MeshLoad(0, 2, prefill_permits=3, prefill_s=1.0), 1.0, id="decode stands in"),
        pytest.param(MeshLoad(1, 1, decode_permits=60, decode_s=9.0), 0.0, id="slots are free"),
        pytest.param(
            MeshLoad(99, 1, decode_permits=DECODE_SLOTS, waiting_ahead=31, decode_s=4.0),
            32 * 4.0 / DECODE_SLOTS,
            id="beyond the slots",
        ),
    ],
)
def test_queue_is_what_cannot_run_at_once(load: MeshLoad, expected_s: float) -> None:
    assert predict_ttft_s(load) == pytest.approx(expected_s)


@pytest.mark.parametrize(
    ("priority", "estimate_s", "admitted"),
    [
        (LOW, 0.5, True),
        (LOW, 0.6, False),
        (NORMAL, 2.0, True),
        (NORMAL, 2.1, False),
        (HIGH, 60.0, True),
    ],
)
def test_priority_decides_what_is_too_late(
    priority: Priority, estimate_s: float, admitted: bool
) -> None:
    verdict = decide(backlog(1, estimate_s), priority=priority)
    assert isinstance(verdict, Accept if admitted else Reject)
    assert verdict.predicted_ttft_s == pytest.approx(estimate_s)
    if isinstance(verdict, Reject):
        assert verdict.reason == TTFT_UNATTAINABLE


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize(
    ("limits", "request_", "kind"),
    [
        pytest.param(QosLimits(enable_early_rejection=False), {"priority": LOW}, Accept, id="off"),
        pytest.param(QosLimits(reject_on_slo_violation=False), {}, Accept, id="normal spared"),
        pytest.param(
            QosLimits(reject_on_slo_violation=False), {"priority": LOW}, Reject, id="low is not"
        ),
        pytest.param(QosLimits(), {"ttft_slo_s": 9.0}, Accept, id="its own loose target"),
        pytest.param(QosLimits(ttft_slo_s=99.0), {"ttft_slo_s": 4.0}, Reject, id="own strict one"),
    ],
)
def test_the_chapters_fields_hold_for_every_policy(
    name: str, limits: QosLimits, request_: dict[str, object], kind: type[Verdict]
) -> None:
    load = MeshLoad(1, 1, prefill_permits=1, prefill_s=5.0, backlog_s=5.0, decode=DecodePool(1))
    request = PermitRequest("r", **request_)  # type: ignore[arg-type]
    assert isinstance(POLICIES[name](limits).decide(0.0, load, request), kind)


@given(
    prefill_s=st.floats(0, 1e6),
    decode_s=st.floats(0, 1e6),
    priority=st.sampled_from(Priority),
    decoding=st.integers(0, DECODE_SLOTS - 1),
)
def test_quiet_mesh_rejects_nobody(
    prefill_s: float, decode_s: float, priority: Priority, decoding: int
) -> None:
    load = MeshLoad(1, 1, decode_permits=decoding, prefill_s=prefill_s, decode_s=decode_s)
    assert isinstance(decide(load, priority=priority, ttft_slo_s=1e-6), Accept)


@pytest.mark.parametrize(
    ("policy", "now", "foreseen", "later", "admitted"),
    [
        pytest.param(SloNowPolicy, 180, 20, 20, False, id="today's load, though it will be gone"),
        pytest.param(SloNowPolicy, 20, 180, 180, True, id="today's, though more was let in"),
        pytest.param(PredictivePolicy, 180, 20, 20, True, id="it will be gone by then"),
        pytest.param(PredictivePolicy, 20, 180, 180, False, id="more was let in"),
        pytest.param(PredictivePolicy, 20, 180, 90, True, id="room while it can still wait"),
    ],
)
def test_decode_load_is_that_of_the_policys_moment(
    policy: type[SloNowPolicy | PredictivePolicy],
    now: float,
    foreseen: float,
    later: float,
    admitted: bool,
) -> None:
    verdict = policy(QosLimits()).decide(0.0, decoding(now, foreseen, later), PermitRequest("r"))
    assert isinstance(verdict, Accept if admitted else Reject)
    if isinstance(verdict, Reject):
        assert verdict.reason == DECODE_SATURATED


@pytest.mark.parametrize(
    ("priority", "streams", "admitted"),
    [(LOW, 141, True), (LOW, 142, False), (NORMAL, 160, True), (NORMAL, 161, False)],
)
def test_each_class_stops_at_its_own_ceiling(
    priority: Priority, streams: float, admitted: bool
) -> None:
    policy = PredictivePolicy(QosLimits())
    request = PermitRequest("r", priority=priority)
    verdict = policy.decide(0.0, decoding(0, streams), request)
    assert isinstance(verdict, Accept if admitted else Reject)
    high = PermitRequest("r", priority=HIGH)
    assert isinstance(policy.decide(0.0, decoding(0, 1000), high), Accept)


def test_after_a_refusal_the_ceiling_is_lower_until_somebody_is_let_in() -> None:
    policy = PredictivePolicy(QosLimits())
    request = PermitRequest("r")
    loads = [decoding(0, streams) for streams in (158, 165, 158, 150, 158)]
    verdicts = [isinstance(policy.decide(0.0, load, request), Accept) for load in loads]
    assert verdicts == [True, False, False, True, True]


def test_a_stream_with_a_worker_to_itself_is_never_refused_for_its_pace() -> None:
    strict = PermitRequest("r", tpot_slo_s=1e-6)
    verdict = PredictivePolicy(QosLimits()).decide(0.0, decoding(0, 0), strict)
    assert isinstance(verdict, Accept)


def test_nothing_before_a_long_prompt_means_that_nobody_could_serve_it_sooner() -> None:
    load = MeshLoad(1, 1, own_s=60.0)
    for make in POLICIES.values():
        assert isinstance(make(QosLimits()).decide(0.0, load, PermitRequest("r")), Accept)


@pytest.mark.parametrize(
    ("load", "priority", "starts"),
    [
        pytest.param(MeshLoad(1, 1), LOW, True, id="idle"),
        pytest.param(MeshLoad(1, 1, prefill_permits=1, backlog_s=5), NORMAL, True, id="the next"),
        pytest.param(MeshLoad(1, 1, prefill_permits=1, backlog_s=5), LOW, False, id="low waits"),
        pytest.param(MeshLoad(1, 1, prefill_permits=2, backlog_s=5), HIGH, False, id="enough"),
        pytest.param(MeshLoad(1, 1, prefill_permits=9, backlog_s=0.1), LOW, True, id="short ones"),
        pytest.param(MeshLoad(1, 1, decode_permits=DECODE_SLOTS), HIGH, False, id="no slot"),
        pytest.param(MeshLoad(1, 1, free_slots=0), HIGH, False, id="no slot of its own"),
        pytest.param(decoding(0, 180), NORMAL, False, id="decode will be full"),
        pytest.param(decoding(0, 180), HIGH, True, id="high does not wait for that"),
    ],
)
def test_requests_start_when_workers_have_room(
    load: MeshLoad, priority: Priority, starts: bool
) -> None:
    request = PermitRequest("r", priority=priority)
    assert PredictivePolicy(QosLimits()).may_start(0.0, load, request) is starts


def test_higher_classes_slow_down_what_a_lower_one_waits_for() -> None:
    load = MeshLoad(1, 1, prefill_permits=1, backlog_s=1.0, own_s=0.5)
    assert load.ttft_s == pytest.approx(1.5)
    behind = MeshLoad(1, 1, prefill_permits=1, backlog_s=1.0, own_s=0.5, overtaken=0.5)
    assert behind.ttft_s == pytest.approx(3.0)


def test_who_is_too_late_is_given_up_but_never_high_priority() -> None:
    policy = PredictivePolicy(QosLimits(ttft_slo_s=2.0))
    assert not policy.is_hopeless(1.0, 0.5, PermitRequest("r"))
    assert policy.is_hopeless(1.5, 0.5, PermitRequest("r"))
    assert not policy.is_hopeless(1e9, 0.5, PermitRequest("r", priority=HIGH))


@given(
    load=st.builds(
        MeshLoad,
        prefill_workers=st.integers(0, 4),
        decode_workers=st.integers(1, 4),
        prefill_permits=st.integers(0, 100),
        decode_permits=st.integers(0, 300),
        waiting_ahead=st.integers(0, 300),
        prefill_s=st.floats(0, 10),
        decode_s=st.floats(0, 100),
        backlog_s=st.floats(0, 100),
        ahead_s=st.floats(0, 100),
        own_s=st.floats(0, 100),
        overtaken=st.floats(0, 0.95),
        streams=st.builds(Streams, st.floats(0, 1000), st.floats(0, 1e6)),
    ),
    priority=st.sampled_from(Priority),
    name=st.sampled_from(sorted(POLICIES)),
)
def test_verdicts_stay_within_bounds(load: MeshLoad, priority: Priority, name: str) -> None:
    policy = POLICIES[name](QosLimits())
    verdict = policy.decide(0.0, load, PermitRequest("r", priority=priority))
    assert verdict.predicted_ttft_s >= 0
    if isinstance(verdict, Reject):
        assert priority is not Priority.HIGH
        assert 0 <= verdict.drain_s < math.inf
