"""The chapter's early rejection, row by row, with values from its formula."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baton.requests import Priority
from services.admission.policy import (
    DECODE_SLOTS,
    QUEUE_FULL,
    TTFT_UNATTAINABLE,
    Admit,
    MeshLoad,
    PermitRequest,
    QosLimits,
    QueueEstimatePolicy,
    Reject,
    Verdict,
    Wait,
    estimate_ttft_s,
    predict_ttft_s,
)

LOW, NORMAL, HIGH = Priority.LOW, Priority.NORMAL, Priority.HIGH


def decide(load: MeshLoad, limits: QosLimits | None = None, **request: object) -> Verdict:
    policy = QueueEstimatePolicy(limits or QosLimits(), random.Random(1))
    return policy.decide(0.0, load, PermitRequest("r", **request))  # type: ignore[arg-type]


def backlog(prefill_permits: int, prefill_s: float, workers: int = 1) -> MeshLoad:
    return MeshLoad(workers, 1, prefill_permits=prefill_permits, prefill_s=prefill_s)


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
    assert isinstance(verdict, Admit if admitted else Reject)
    assert verdict.predicted_ttft_s == pytest.approx(estimate_s)
    if isinstance(verdict, Reject):
        assert verdict.reason == TTFT_UNATTAINABLE


@pytest.mark.parametrize(
    ("limits", "request_", "kind"),
    [
        pytest.param(QosLimits(enable_early_rejection=False), {"priority": LOW}, Admit, id="off"),
        pytest.param(QosLimits(reject_on_slo_violation=False), {}, Admit, id="normal spared"),
        pytest.param(
            QosLimits(reject_on_slo_violation=False), {"priority": LOW}, Reject, id="low is not"
        ),
        pytest.param(QosLimits(), {"ttft_slo_s": 9.0}, Admit, id="its own loose target"),
        pytest.param(QosLimits(ttft_slo_s=99.0), {"ttft_slo_s": 4.0}, Reject, id="own strict one"),
    ],
)
def test_qos_settings_are_honoured(
    limits: QosLimits, request_: dict[str, object], kind: type[Verdict]
) -> None:
    assert isinstance(decide(backlog(1, 5.0), limits, **request_), kind)


def test_full_mesh_makes_requests_wait_until_the_queue_is_full() -> None:
    limits = QosLimits(max_queue_length=2)
    for ahead, kind in ((0, Wait), (1, Wait), (2, Reject)):
        load = MeshLoad(1, 1, decode_permits=DECODE_SLOTS, waiting_ahead=ahead, decode_s=1.0)
        verdict = decide(load, limits)
        assert isinstance(verdict, kind)
    assert isinstance(verdict, Reject)
    assert verdict.reason == QUEUE_FULL


def test_retry_comes_after_the_excess_drained_and_is_spread() -> None:
    policy = QueueEstimatePolicy(QosLimits(), random.Random(5))
    verdicts = [policy.decide(0.0, backlog(5, 1.0), PermitRequest("r")) for _ in range(20)]
    retries = [verdict.retry_after_s for verdict in verdicts if isinstance(verdict, Reject)]
    assert len(retries) == 20
    assert all(3.0 <= retry_s <= 4.5 for retry_s in retries)
    assert len(set(retries)) > 10


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
    assert isinstance(decide(load, priority=priority, ttft_slo_s=1e-6), Admit)


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
    ),
    priority=st.sampled_from(Priority),
)
def test_verdicts_stay_within_bounds(load: MeshLoad, priority: Priority) -> None:
    verdict = decide(load, priority=priority)
    assert verdict.predicted_ttft_s >= 0
    if isinstance(verdict, Admit):
        assert load.has_room
    if isinstance(verdict, Reject):
        assert 0 < verdict.retry_after_s <= 30
        assert priority is not Priority.HIGH or verdict.reason == QUEUE_FULL
