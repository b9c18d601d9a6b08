"""From a decode worker's frames to the steps of a request's task."""

import asyncio
import itertools
from typing import Any, cast

import pytest

from baton.errors import UnavailableError
from baton.v1 import decode_link_pb2 as frames
from services.router.relay import Beat, Relay


class Call:
    """The opener's end of a request on a link."""

    def __init__(self) -> None:
        self.events = 0

    def consumed(self, events: int) -> None:
        self.events += events


class ManualBeat(Beat):
    """Strikes when told to."""

    def join(self, wake: Any) -> None:
        self._joined.append(wake)

    def strike(self) -> None:
        self._strike()


def tokens(*ids: int) -> tuple[Any, str]:
    return frames.DecodeEvent(tokens=frames.DecodeTokens(output_ids=ids)), "tokens"


FINISHED = frames.DecodeEvent(finished=frames.DecodeFinished(finish_reason=2)), "finished"
PREFILLED = frames.DecodeEvent(prefilled=frames.DecodePrefilled(reason="X")), "prefilled"


async def now(relay: Relay, call: Call) -> Any:
    """Returns what is there now, or None where the relay would wait."""
    waiting = asyncio.ensure_future(relay.next(cast("Any", call)))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    if waiting.done():
        return waiting.result()
    waiting.cancel()
    return None


async def test_first_token_and_the_end_come_at_once_and_the_rest_with_the_beat() -> None:
    beat, call = ManualBeat(), Call()
    relay = Relay(beat, has_started=False)
    relay.deliver(*PREFILLED)
    assert await now(relay, call) is None
    relay.deliver(*tokens(1))
    first = await now(relay, call)
    assert (first.prefilled.reason, first.output_ids) == ("X", [1])
    relay.deliver(*tokens(2))
    relay.deliver(*tokens(3, 4))
    assert await now(relay, call) is None
    beat.strike()
    assert (await now(relay, call)).output_ids == [2, 3, 4]
    relay.deliver(*tokens(5))
    relay.deliver(*FINISHED)
    last = await now(relay, call)
    assert (last.output_ids, last.finish_reason) == ([5], 2)
    relay.end(None)
    assert await relay.next(cast("Any", call)) is None


async def test_room_is_granted_only_as_the_task_comes_back() -> None:
    beat, call = ManualBeat(), Call()
    relay = Relay(beat, has_started=True)
    for _ in range(10):
        relay.deliver(*tokens(1))
    beat.strike()
    assert call.events == 0
    await now(relay, call)
    assert call.events == 10


async def test_beat_without_anything_new_is_no_end() -> None:
    beat, call = ManualBeat(), Call()
    relay = Relay(beat, has_started=False)
    relay.deliver(*PREFILLED)
    relay.deliver(*tokens(1))
    assert (await now(relay, call)).output_ids == [1]
    beat.strike()
    assert await now(relay, call) is None
    relay.deliver(*tokens(2))
    beat.strike()
    assert (await now(relay, call)).output_ids == [2]


async def test_tokens_before_an_error_are_not_lost_and_those_behind_the_finish_do_not_count() -> (
    None
):
    call = Call()
    relay = Relay(ManualBeat(), has_started=True)
    relay.deliver(*tokens(1, 2))
    relay.end(UnavailableError("gone", reason="PEER_LOST"))
    assert (await now(relay, call)).output_ids == [1, 2]
    with pytest.raises(UnavailableError):
        await relay.next(cast("Any", call))
    ended = Relay(ManualBeat(), has_started=True)
    ended.deliver(*FINISHED)
    ended.deliver(*tokens(3))
    assert (await now(ended, call)).output_ids == []


async def test_beat_wakes_all_who_joined_together() -> None:
    beat, woken = Beat(every_s=0.001), asyncio.Event()
    seen: list[int] = []
    for i in range(3):
        beat.join(lambda i=i: seen.append(i))  # type: ignore[misc]
    beat.join(woken.set)
    async with asyncio.timeout(5):
        await woken.wait()
    assert seen == [0, 1, 2]


async def test_a_beat_of_many_leaves_the_event_loop_time_for_others() -> None:
    beat, woken, seen = ManualBeat(), list[int](), list[int]()
    for number in range(1000):
        beat.join(lambda number=number: woken.append(number))
    beat.strike()
    while len(woken) < 1000:
        seen.append(len(woken))
        await asyncio.sleep(0)
    assert woken == list(range(1000))
    assert max(b - a for a, b in itertools.pairwise(seen)) < 100
