"""Offers requests at their times and waits for all of them: a process of its own, of low weight.

    python -m bench.disagg.offer '{"address": ..., "streams": [...], ...}'

Prints what came back as one JSON line.
"""

import asyncio
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import count

import uvloop

from bench.disagg.point import Seen, Turn
from bench.disagg.work import Arrival, Shape, Slo, arrivals
from bench.drive import Outcome
from bench.load import StreamTarget
from bench.prompts import PromptPlan

_WARM_SHARE = 0.15
"""Of the first arrivals that are not judged: the mesh is still filling."""
_TIMEOUT_S = 240.0
"""Long enough for an arm that is overrun to answer all the same: times that are cut off by a
deadline would make it look better than it is."""


@dataclass(frozen=True, slots=True)
class Stream:
    """Requests of some shapes at one rate; those not judged only make load."""

    shapes: tuple[Shape, ...]
    rate_per_s: float
    seed: int
    is_judged: bool = True


@dataclass(frozen=True, slots=True)
class Offer:
    """What to send where, and what it is judged by. `prompt_seed` makes the prompts, none twice."""

    address: str
    streams: tuple[Stream, ...]
    seconds: float
    prompt_seed: int
    slo: Slo

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


async def run(offer: Offer) -> Turn:
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
                group.create_task(target.run(request, it.outcome, _TIMEOUT_S))
    finally:
        await target.close()
    return _turn(sent, offer)


def _turn(sent: Sequence[_Sent], offer: Offer) -> Turn:
    warm_s = _WARM_SHARE * offer.seconds
    counted = [it.outcome for it in sent if it.is_judged and it.arrival.at_s >= warm_s]
    well = [outcome for outcome in counted if not outcome.error]
    last_s = max((outcome.last_s for outcome in well), default=0.0)
    first_s = min((outcome.started_s for outcome in well), default=0.0)
    seen = tuple(Seen.of(outcome) for outcome in counted)
    return Turn(offer.seconds - warm_s, last_s - first_s, offer.slo, seen)


if __name__ == "__main__":
    print(json.dumps(asdict(uvloop.run(run(Offer.read(sys.argv[1]))))))
