"""An index that stays wrong for a worker is noticed, and a right one is not accused."""

import logging

import pytest

from baton.v1 import types_pb2
from services.router.drift import MAX_WORKERS, MIN_REQUESTS, IndexDrift
from tests.support.control_plane import Call, FakeDecodeWorker, control_plane
from tests.support.mesh import greedy
from tests.support.waiting import eventually


@pytest.mark.parametrize(
    ("expected", "found", "words"),
    [(800, 0, "announces more than it keeps"), (0, 800, "do its cache events arrive")],
)
def test_lasting_drift_is_logged_once_and_ends(
    expected: int, found: int, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    drift = IndexDrift()
    with caplog.at_level(logging.INFO):
        for _ in range(MIN_REQUESTS - 1):
            drift.observe("w", expected, found, 1000)
        assert not drift.alarmed
        for _ in range(9):
            drift.observe("w", expected, found, 1000)
        assert drift.alarmed == ["w"]
        assert drift.worst == pytest.approx(0.8)
        for _ in range(60):
            drift.observe("w", 500, 500, 1000)
    assert not drift.alarmed
    first, last = [record.getMessage() for record in caplog.records]
    assert words in first
    assert "right again" in last


def test_noise_around_the_truth_is_no_drift() -> None:
    drift = IndexDrift()
    for number in range(200):
        drift.observe("w", 500, 500 + (300 if number % 2 else -300), 1000)
    assert not drift.alarmed


def test_workers_are_bounded() -> None:
    drift = IndexDrift()
    for number in range(3 * MAX_WORKERS):
        drift.observe(f"w{number}", 800, 0, 1000)
    assert len(drift._workers) == MAX_WORKERS


async def test_worker_without_cache_events_is_noticed_by_the_router(redis_url: str) -> None:
    async def silent(worker: FakeDecodeWorker, call: Call) -> None:
        prompt = len(call.start.start.input_ids)
        await worker.send_prefilled(call, cached_tokens=prompt - 1)
        await worker.send_token(call)
        await worker.send_finished(call, types_pb2.FINISH_REASON_LENGTH)

    async with control_plane(redis_url) as plane:
        await plane.decode("decode-0", silent)
        router = await plane.router()
        client = await plane.client(router)
        for number in range(MIN_REQUESTS):
            await client.generate(
                input_ids=[5] * 40, sampling_params=greedy(1), cache_salt=str(number)
            )
        await eventually(lambda: router.metrics.drift.alarmed == ["decode-0"])
