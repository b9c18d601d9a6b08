"""Reservations' states: what may follow what, one end, and what is overdue."""

import pytest

from services.decode.leases import LeaseBook, LeaseState

DEADLINES_S = dict(zip(LeaseState, (1.0, 2.0, 3.0, 4.0), strict=True))


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def test_each_state_has_its_own_deadline() -> None:
    clock = Clock()
    book = LeaseBook(DEADLINES_S, clock)
    book.open("t")
    for state, deadline_s in DEADLINES_S.items():
        if state is not LeaseState.RESERVED:
            book.move("t", state)
        clock.now_s += deadline_s
        assert book.overdue() == []
        clock.now_s += 0.1
        assert book.overdue() == ["t"]
        assert book.counts()[state] == 1
    book.end("t")
    assert book.overdue() == []
    assert len(book) == 0


@pytest.mark.parametrize("state", [LeaseState.RESERVED, LeaseState.STOPPING])
def test_states_are_not_skipped(state: LeaseState) -> None:
    book = LeaseBook(DEADLINES_S)
    book.open("t")
    with pytest.raises(AssertionError, match="cannot go"):
        book.move("t", state)


def test_lease_ends_once() -> None:
    book = LeaseBook(DEADLINES_S)
    book.open("t")
    book.end("t")
    with pytest.raises(AssertionError, match="ends twice"):
        book.end("t")


def test_lease_is_opened_once() -> None:
    book = LeaseBook(DEADLINES_S)
    book.open("t")
    with pytest.raises(AssertionError, match="twice"):
        book.open("t")
