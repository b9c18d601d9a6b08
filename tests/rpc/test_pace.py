"""Frames that share messages, and how far apart messages are kept."""

import asyncio

import pytest

from baton.rpc.pace import LONGEST_BUSY_S, LONGEST_S, Outbox, Pace
from baton.v1 import decode_link_pb2 as frames


class ManualClock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def idle() -> float:
    return 0.0


def event(*ids: int) -> frames.DecodeEvent:
    return frames.DecodeEvent(tokens=frames.DecodeTokens(output_ids=ids))


def pass_messages(pace: Pace, clock: ManualClock, per_s: float, seconds: float) -> None:
    for _ in range(int(per_s * seconds)):
        clock.now_s += 1 / per_s
        pace.note()


def test_few_messages_are_not_spaced() -> None:
    clock = ManualClock()
    pace = Pace(1000, clock, idle)
    pass_messages(pace, clock, per_s=500, seconds=5)
    assert pace.interval_s == 0


def test_many_messages_are_spaced_within_the_bound_and_no_longer_than_they_are_many() -> None:
    clock = ManualClock()
    pace = Pace(1000, clock, idle)
    pass_messages(pace, clock, per_s=8000, seconds=1)
    assert pace.interval_s == LONGEST_S
    pass_messages(pace, clock, per_s=100, seconds=1)
    assert pace.interval_s == 0


def test_busy_event_loop_spaces_few_messages_until_it_has_time_again() -> None:
    clock, busy = ManualClock(), ManualClock()
    pace = Pace(1000, clock, busy)
    for share, expected_s in ((0.3, 0.0), (0.8, LONGEST_BUSY_S), (0.1, 0.0)):
        for _ in range(400):
            clock.now_s += 0.005
            busy.now_s += share * 0.005
            pace.note()
        assert pace.interval_s == expected_s


@pytest.mark.parametrize("links", [2, 6])
def test_spacing_brings_the_process_to_its_number_of_messages(links: int) -> None:
    clock = ManualClock()
    pace = Pace(1000, clock, idle)
    sent = 0
    while clock.now_s < 5:
        # Each link always has a frame to send.
        clock.now_s += max(pace.interval_s, 0.0002)
        for _ in range(links):
            pace.note()
            sent += clock.now_s > 4
    assert 700 < sent < 1300


async def test_frames_ready_together_share_a_message_in_order() -> None:
    outbox: Outbox[frames.DecodeEvent] = Outbox(Pace())
    for i in range(5):
        outbox.post(event(i))
    taken = await outbox.take()
    assert [it.tokens.output_ids[0] for it in taken] == [0, 1, 2, 3, 4]


async def test_held_frame_leaves_with_the_next_urgent_one() -> None:
    outbox: Outbox[frames.DecodeEvent] = Outbox(Pace())
    outbox.post(event(1), hold_s=60.0)
    taking = asyncio.ensure_future(outbox.take())
    await asyncio.sleep(0)
    assert not taking.done()
    outbox.post(event(2))
    async with asyncio.timeout(5):
        assert len(await taking) == 2


async def test_held_frame_leaves_by_itself_in_time() -> None:
    outbox: Outbox[frames.DecodeEvent] = Outbox(Pace())
    outbox.post(event(1), hold_s=0.01)
    async with asyncio.timeout(5):
        assert len(await outbox.take()) == 1


async def test_long_frames_do_not_make_a_message_too_long() -> None:
    outbox: Outbox[frames.DecodeEvent] = Outbox(Pace())
    for _ in range(3):
        outbox.post(event(*range(262_130)))
    outbox.post(event(1))
    assert [len(await outbox.take()) for _ in range(3)] == [1, 1, 2]
