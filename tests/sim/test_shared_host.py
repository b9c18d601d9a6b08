"""Workers of one host slow each other down while they compute."""

from dataclasses import replace

import pytest

from sim.engine.host import Sharing
from sim.engine.links import LinkSpec
from sim.workload import SimRequest
from tests.sim.worlds import fleet, replay

# A decode worker computes 100 tokens until 0.1 s and then 20 steps of 10 ms; the prefill worker
# has 300 tokens to compute from 0.1 s on.
REQUESTS = [SimRequest(0.0, 100, 21), SimRequest(0.1, 300, 1)]


@pytest.mark.parametrize(
    ("sharing", "decode_ends_s", "ttft_s"),
    [
        (None, 0.3, 0.3),
        # 0.2 s together, in which half of the work is done: 0.1 of 0.3 s.
        (Sharing(prefill=2.0), 0.3, 0.4),
        # 0.3 s together, in which 0.2 s of decoding and 0.15 s of prefill are done.
        (Sharing(prefill=2.0, decode=1.5), 0.4, 0.45),
    ],
)
def test_what_runs_together_takes_longer_by_its_factor(
    sharing: Sharing | None, decode_ends_s: float, ttft_s: float
) -> None:
    spec = replace(fleet(1, 1), sharing=sharing)
    _, [first, second] = replay(spec, REQUESTS)
    assert second.is_remote
    assert first.ended_s == pytest.approx(decode_ends_s)
    assert second.ttft_s == pytest.approx(ttft_s, abs=1e-3)


def test_factors_of_one_change_nothing() -> None:
    requests = [SimRequest(0.07 * n, 40 + 37 * n % 500, 3 + n % 9) for n in range(60)]
    plain, shared = (
        replay(replace(fleet(2, 2), sharing=sharing), requests)[1] for sharing in (None, Sharing())
    )
    for one, other in zip(plain, shared, strict=True):
        assert other.ttft_s == pytest.approx(one.ttft_s)
        assert other.ended_s == pytest.approx(one.ended_s)


def test_messages_take_longer_by_their_factor_while_a_worker_computes() -> None:
    link = LinkSpec(latency_s=0.01)
    ttfts_s = []
    for tokens in (61, 2):  # decoding until after the prompt, and only until before it
        requests = [SimRequest(0.0, 100, tokens), SimRequest(0.15, 300, 1)]
        for messages in (1.0, 3.0):
            spec = replace(fleet(1, 1), sharing=Sharing(messages=messages), link=link)
            ttfts_s.append(replay(spec, requests)[1][1].ttft_s)
    busy_s, slowed_s, idle_s, still_idle_s = ttfts_s
    assert slowed_s - busy_s >= 2 * link.latency_s - 1e-9
    assert still_idle_s == pytest.approx(idle_s)
