"""Offers requests at their times and waits for all of them: a process of its own, of low weight.

    python -m bench.disagg.offer '{"address": ..., "streams": [...], ...}'

Prints the point as one JSON line.
"""

import asyncio
import json
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import count
from typing import Any

import uvloop

from bench.disagg.work import Arrival, Shape, Slo, arrivals
from bench.drive import Outcome, percentiles_ms
from bench.load import StreamTarget
from bench.prompts import PromptPlan

_WARM_SHARE = 0.15
"""Of the first arrivals that are not judged: the mesh is still filling."""
_LATEST_S = 15.0
"""After the last arrival; who has not ended by then has failed."""


@dataclass(frozen=True, slots=True)
class Point:
    """What one offered load showed. `attained` is the share that met both targets.

    `local_share` is that of the answered ones whose decode worker computed the prompt itself.
    """

    offered_per_s: float
    requests: int
    errors: dict[str, int]
    ttft_ms: dict[str, float]
    tpot_ms: dict[str, float]
    attained: float
    tokens_per_s: float
    local_share: float | None = None

    @property
    def goodput_per_s(self) -> float:
        """Requests per second within both targets; failed and refused ones are offered too."""
        return self.attained * self.offered_per_s


@dataclass(frozen=True, slots=True)
class Stream:
    """Requests of some shapes at one rate; those not judged only make load."""

    shapes: tuple[Shape, ...]
    rate_per_s: float
    seed: int
    is_judged: bool = True


@dataclass(frozen=True, slots=True)
class Offer:
    """What to send where. `prompt_seed` makes the prompts, none of them twice."""

    address: str
    streams: tuple[Stream, ...]
    seconds: float
    slo: Slo
    prompt_seed: int

    @classmethod
    def read(cls, text: str) -> "Offer":
        """Returns the offer that `asdict` and JSON wrote."""
        values = json.loads(text)
        streams = tuple(
            Stream(tuple(Shape(**shape) for shape in it.pop("shapes")), **it)
            for it in values.pop("streams")
        )
        return cls(streams=streams, slo=Slo(**values.pop("slo")), **values)


@dataclass(slots=True)
class _Sent:
    arrival: Arrival
    is_judged: bool
    outcome: Outcome


async def run(offer: Offer) -> Point:
    """Sends everything and returns what the judged requests showed, but for the first few."""
    sent = sorted(
        (
            _Sent(arrival, stream.is_judged, Outcome(0.0))
            for stream in offer.streams
            for arrival in arrivals(stream.shapes, stream.rate_per_s, offer.seconds, stream.seed)
        ),
        key=lambda it: it.arrival.at_s,
    )
    requests = [it.arrival.request(seed) for it, seed in zip(sent, count(offer.prompt_seed))]
    target = StreamTarget(offer.address, PromptPlan(1, 1), channels=4)
    started_s = time.monotonic()
    try:
        async with asyncio.TaskGroup() as group:
            for it, request in zip(sent, requests, strict=True):
                due_s = started_s + it.arrival.at_s
                await asyncio.sleep(due_s - time.monotonic())
                it.outcome.started_s = due_s
                group.create_task(target.run(request, it.outcome, _LATEST_S))
    finally:
        await target.close()
    return _point(sent, offer)


def _point(sent: Sequence[_Sent], offer: Offer) -> Point:
    warm_s = _WARM_SHARE * offer.seconds
    counted = [it.outcome for it in sent if it.is_judged and it.arrival.at_s >= warm_s]
    well = [outcome for outcome in counted if not outcome.error]
    tpots = [outcome.tpot_s for outcome in well if outcome.tpot_s is not None]
    last_s = max((outcome.last_s for outcome in well), default=0.0)
    first_s = min((outcome.started_s for outcome in well), default=0.0)
    return Point(
        offered_per_s=len(counted) / (offer.seconds - warm_s),
        requests=len(counted),
        errors=dict(Counter(outcome.error for outcome in counted if outcome.error)),
        ttft_ms=percentiles_ms([outcome.ttft_s for outcome in well]),
        tpot_ms=percentiles_ms(tpots),
        attained=sum(_meets(outcome, offer.slo) for outcome in well) / max(1, len(counted)),
        tokens_per_s=sum(o.tokens for o in well) / max(1e-9, last_s - first_s),
        local_share=sum(outcome.is_local for outcome in well) / max(1, len(well)),
    )


def _meets(outcome: Outcome, slo: Slo) -> bool:
    return outcome.ttft_s <= slo.ttft_s and (outcome.tpot_s or 0.0) <= slo.tpot_s


def row(name: str, point: Point) -> str:
    """Returns a point as one line of the table."""
    cells: list[Any] = [f"{point.offered_per_s:8.2f}", f"{point.requests:5d}"]
    for values in (point.ttft_ms, point.tpot_ms):
        cells += [f"{values.get(key, float('nan')):9.1f}" for key in ("p50", "p99")]
    local = float("nan") if point.local_share is None else 100 * point.local_share
    cells += [f"{100 * point.attained:6.0f}%", f"{point.tokens_per_s:8.0f}", f"{local:5.0f}%"]
    errors = f"  {point.errors}" if point.errors else ""
    return f"{name:24}" + " ".join(cells) + errors


_COLUMNS = "offered/s, count, TTFT p50,   p99 ms, TPOT p50,   p99 ms, within, tokens/s, local"
HEAD = " ".join([f"{'':24}", *_COLUMNS.split(", ")])


if __name__ == "__main__":
    print(json.dumps(asdict(uvloop.run(run(Offer.read(sys.argv[1]))))))
