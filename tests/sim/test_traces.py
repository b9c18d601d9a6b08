"""Readers of recorded workloads, and made-up ones."""

import itertools
import json
import random
import statistics
from pathlib import Path

import pytest

from sim.traces.arrivals import Arrivals
from sim.traces.azure import CsvTrace
from sim.traces.errors import TraceError
from sim.traces.find import find
from sim.traces.mooncake import MooncakeTrace
from sim.traces.synthetic import ConversationTrace, InterferenceTrace, MixTrace
from sim.workload import SimRequest


def _mooncake(path: Path, rows: list[tuple[int, int, int, list[int]]]) -> MooncakeTrace:
    keys = ("timestamp", "input_length", "output_length", "hash_ids")
    path.write_text("".join(json.dumps(dict(zip(keys, row, strict=True))) + "\n" for row in rows))
    return MooncakeTrace(path)


def test_mooncake_ticks_are_spread_and_stay_in_order(tmp_path: Path) -> None:
    # The public traces are a few milliseconds off their ticks here and there.
    rows = [(tick, 1000, 10, [0, 1]) for tick in (0, 1, 0, 2999, 3000)]
    trace = _mooncake(tmp_path / "t.jsonl", rows)
    arrivals = [request.arrival_s for request in trace.requests(1)]
    assert arrivals == sorted(arrivals)
    assert len(set(arrivals)) == 5
    assert max(arrivals[:3]) < 3 <= min(arrivals[3:])
    assert arrivals == [request.arrival_s for request in trace.requests(1)]
    assert arrivals != [request.arrival_s for request in trace.requests(2)]
    assert [2 * r.arrival_s for r in trace.requests(1, 2.0)] == pytest.approx(arrivals)


def test_exact_times_are_kept(tmp_path: Path) -> None:
    rows = [(time_ms, 1000, 10, [0, 1]) for time_ms in (0, 2990, 3000, 4100)]
    trace = _mooncake(tmp_path / "t.jsonl", rows)
    assert [request.arrival_s for request in trace.requests(1)] == [0, 2.99, 3, 4.1]


def test_only_full_blocks_of_mooncake_can_be_reused(tmp_path: Path) -> None:
    trace = _mooncake(tmp_path / "t.jsonl", [(0, 1100, 10, [5, 6, 7])])
    [request] = trace.requests(1)
    assert (request.prompt_tokens, request.hashes) == (1100, (5, 6))


@pytest.mark.parametrize("line", ["{", "[]", '{"timestamp": 1}'])
def test_a_broken_line_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(TraceError, match=r"t\.jsonl:1"):
        list(MooncakeTrace(path).requests(1))


def test_azure_times_count_from_the_first_request(tmp_path: Path) -> None:
    path = tmp_path / "azure.csv"
    path.write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens\n"
        "2023-11-16 18:17:03.9799600,4808,10\n"
        "2023-11-16 18:17:04.0319600,3180,8\n"
    )
    assert list(CsvTrace(path).requests(1)) == [
        SimRequest(0.0, 4808, 10),
        SimRequest(pytest.approx(0.052), 3180, 8),
    ]


def test_lengths_without_times_need_arrivals(tmp_path: Path) -> None:
    path = tmp_path / "lengths.csv"
    path.write_text("input_length,output_length\n7,3\n9,0\n")
    with pytest.raises(TraceError, match="arrive"):
        find(str(path))
    requests = list(find(str(path), Arrivals(10.0)).trace.requests(1))
    assert [(r.prompt_tokens, r.output_tokens) for r in requests] == [(7, 3), (9, 1)]


@pytest.mark.parametrize("cv", [1.0, 4.0])
def test_arrivals_have_the_rate_and_burstiness_asked_for(cv: float) -> None:
    times = Arrivals(20.0, cv).times(random.Random(7))
    stamps = [next(times) for _ in range(40_000)]
    gaps = [b - a for a, b in itertools.pairwise(stamps)]
    assert statistics.fmean(gaps) == pytest.approx(1 / 20, rel=0.1)
    assert statistics.stdev(gaps) / statistics.fmean(gaps) == pytest.approx(cv, rel=0.1)


def test_the_mix_is_half_short_and_half_long_and_shares_prefixes() -> None:
    requests = list(MixTrace(2000).requests(1))
    long = [request for request in requests if request.prompt_tokens > 256]
    assert len(long) == pytest.approx(1000, abs=80)
    assert min(request.prompt_tokens for request in long) >= 512
    roots = [request.hashes[0] for request in long]
    assert len(roots) - len(set(roots)) > 200


def test_interference_workloads_have_the_same_chats() -> None:
    chats = list(InterferenceTrace(has_long=False).requests(1))
    both = list(InterferenceTrace(has_long=True).requests(1))
    assert [request for request in both if request.output_tokens > 1] == chats
    assert [r.arrival_s for r in both] == sorted(r.arrival_s for r in both)


def test_generated_conversations_repeat_their_own_beginnings() -> None:
    requests = list(ConversationTrace(200).requests(1))
    assert len(requests) == 200
    assert [r.arrival_s for r in requests] == sorted(r.arrival_s for r in requests)
    assert {r.hashes[0] for r in requests if r.hashes} == {0}
    for request in requests:
        assert len(request.hashes) == request.prompt_tokens // 512


def test_a_recording_that_is_not_there_is_replaced_and_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("BATON_TRACES", str(tmp_path))
    found = find("conversation")
    assert isinstance(found.trace, ConversationTrace)
    assert "BATON_TRACES" in found.note


@pytest.mark.parametrize("name", ["nowhere.jsonl", "__init__.py"])
def test_what_is_no_trace_is_refused(name: str) -> None:
    with pytest.raises(TraceError):
        find(name)
