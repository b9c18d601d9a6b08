"""The JSON that services write about themselves."""

import json

import pytest

from baton.engine.base import EngineStats
from baton.state.records import (
    StatsReport,
    WorkerStats,
    decode_record,
    decode_report,
    encode_record,
    encode_report,
    new_incarnation,
)
from tests.support.fleet import worker_record, worker_stats


def test_record_survives_the_wire() -> None:
    assert decode_record(encode_record(worker_record())) == worker_record()


def test_report_survives_the_wire() -> None:
    report = StatsReport("decode-0", "a1", worker_stats(12.5, queued_requests=2))

    assert decode_report(encode_report(report)) == report


def test_field_of_a_newer_version_is_ignored() -> None:
    fields = {**json.loads(encode_record(worker_record())), "colour": "green"}

    assert decode_record(json.dumps(fields).encode()) == worker_record()


@pytest.mark.parametrize(
    "change", [{"role": "cook"}, {"block_size": -1}, {"worker_id": ""}, {"started_at_s": "soon"}]
)
def test_malformed_record_is_a_value_error(change: dict[str, object]) -> None:
    fields = {**json.loads(encode_record(worker_record())), **change}

    with pytest.raises(ValueError, match=next(iter(change))):
        decode_record(json.dumps(fields).encode())


@pytest.mark.parametrize("data", [b"", b"\xff\x00", b"[]", b"{}"])
def test_anything_else_is_a_value_error(data: bytes) -> None:
    with pytest.raises(ValueError, match="validation error"):
        decode_report(data)


def test_engine_figures_are_taken_over() -> None:
    engine = EngineStats(1, 200, 3, 4, 100, 50, 30, 20, 5, 0.5)

    stats = WorkerStats.of_engine(engine, taken_at_s=7.0, draining=True)

    assert stats == WorkerStats(7.0, 1, 200, 3, 4, 100, 50, 30, 20, 5, 0.5, True)


def test_incarnations_differ() -> None:
    assert new_incarnation() != new_incarnation()
