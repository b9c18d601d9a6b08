"""Cache changes on the wire and while they wait."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baton.engine.base import BlocksCleared, BlocksRemoved, BlocksStored
from baton.state.kv_wire import (
    CacheChange,
    ChangeKind,
    change_of,
    decode_changes,
    encode_changes,
    set_members,
    unpack_hashes,
)
from baton.state.pending import PendingChanges

HASHES = st.lists(st.integers(0, 2**64 - 1), max_size=5).map(tuple)
CHANGES = st.lists(st.builds(CacheChange, st.sampled_from(ChangeKind), HASHES), max_size=8)


@given(CHANGES)
def test_changes_survive_the_wire(changes: list[CacheChange]) -> None:
    assert decode_changes(encode_changes(changes)) == changes


@given(st.binary(max_size=64))
def test_garbage_is_a_value_error_or_changes(data: bytes) -> None:
    try:
        changes = decode_changes(data)
    except ValueError:
        return
    assert encode_changes(changes) == data


def test_cut_off_entry_is_a_value_error() -> None:
    data = encode_changes([CacheChange(ChangeKind.STORED, (1, 2))])

    for size in [0, *range(2, len(data))]:
        with pytest.raises(ValueError, match=r"version|head|hashes"):
            decode_changes(data[:size])


def test_set_members_are_little_endian() -> None:
    assert set_members([1, 2**63]) == [b"\1" + bytes(7), bytes(7) + b"\x80"]
    assert unpack_hashes(b"".join(set_members([1, 2**63]))) == (1, 2**63)


def test_events_become_changes() -> None:
    assert change_of(BlocksStored(7, (8, 9))) == CacheChange(ChangeKind.STORED, (8, 9))
    assert change_of(BlocksRemoved((8,))) == CacheChange(ChangeKind.REMOVED, (8,))
    assert change_of(BlocksCleared()) == CacheChange(ChangeKind.CLEARED)


def _effect(changes: list[CacheChange]) -> set[int]:
    held: set[int] = set()
    for kind, hashes in changes:
        match kind:
            case ChangeKind.STORED:
                held.update(hashes)
            case ChangeKind.REMOVED:
                held.difference_update(hashes)
            case _:
                held.clear()
    return held


SMALL = st.lists(st.integers(0, 6), max_size=4).map(tuple)
ENGINE_CHANGES = st.lists(
    st.one_of(
        st.builds(CacheChange, st.just(ChangeKind.STORED), SMALL),
        st.builds(CacheChange, st.just(ChangeKind.REMOVED), SMALL),
        st.just(CacheChange(ChangeKind.CLEARED)),
    ),
    max_size=12,
)


@given(ENGINE_CHANGES, st.integers(1, 5))
def test_pending_changes_keep_their_effect(changes: list[CacheChange], at_most: int) -> None:
    pending = PendingChanges(max_blocks=1000)
    pending.add(changes)

    taken: list[CacheChange] = []
    while pending:
        part = pending.take(at_most)
        assert part
        assert sum(len(change.hashes) for change in part) <= at_most
        taken += part

    assert _effect(taken) == _effect(changes)
    assert all(c.hashes or c.kind is ChangeKind.CLEARED for c in taken)


def test_too_many_pending_changes_overflow() -> None:
    pending = PendingChanges(max_blocks=3)

    pending.add([CacheChange(ChangeKind.STORED, (1, 2)), CacheChange(ChangeKind.REMOVED, (1, 2))])

    assert pending.overflowed
    assert not pending


def test_taking_makes_room_again() -> None:
    pending = PendingChanges(max_blocks=3)

    for block in range(20):
        pending.add([CacheChange(ChangeKind.STORED, (block, block))])
        pending.take(4)

    assert not pending.overflowed
