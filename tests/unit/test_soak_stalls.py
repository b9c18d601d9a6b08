"""Stalls under load are told from those of the start."""

from opentelemetry.proto.metrics.v1.metrics_pb2 import HistogramDataPoint, Metric

from baton.telemetry.names import LOOP_STALL
from tests.chaos.stalls import latest_points, longest_ms

BOUNDS = (0.01, 0.05, 0.1)


def exported(*counts: int, longest_s: float) -> HistogramDataPoint:
    return HistogramDataPoint(bucket_counts=counts, explicit_bounds=BOUNDS, max=longest_s)


def test_a_longer_stall_than_at_start_is_known_exactly() -> None:
    before = {"router": exported(1, 0, 1, 0, longest_s=0.08)}
    assert longest_ms(before, {"router": exported(5, 0, 1, 1, longest_s=0.12)}) == {"router": 120}


def test_a_shorter_one_is_known_by_its_bucket() -> None:
    before = {"decode": exported(1, 0, 0, 1, longest_s=0.3)}
    after = {"decode": exported(9, 2, 0, 1, longest_s=0.3)}
    assert longest_ms(before, after) == {"decode": 50}
    assert longest_ms(before, before) == {"decode": 0}


def test_a_second_one_beyond_all_buckets_may_be_as_long_as_the_first() -> None:
    before = {"decode": exported(1, 0, 0, 1, longest_s=0.3)}
    assert longest_ms(before, {"decode": exported(1, 0, 0, 2, longest_s=0.3)}) == {"decode": 300}


def test_all_counts_of_a_process_that_had_told_nothing() -> None:
    assert longest_ms({}, {"decode": exported(1, 0, 1, 0, longest_s=0.07)}) == {"decode": 70}


def test_the_latest_point_of_each_process_is_taken() -> None:
    stalls, other = Metric(name=LOOP_STALL.name), Metric(name="else")
    for metric in (stalls, other):
        metric.histogram.data_points.append(exported(1, 0, 0, 0, longest_s=0.01))
    later = Metric(name=LOOP_STALL.name)
    later.histogram.data_points.append(exported(2, 0, 0, 0, longest_s=0.01))
    found = latest_points([("a", stalls), ("b", other), ("a", later)])
    assert {name: point.bucket_counts[0] for name, point in found.items()} == {"a": 2}
