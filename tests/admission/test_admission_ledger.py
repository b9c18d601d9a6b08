"""The ledger's accounts: nothing lost, nothing doubled, order kept, averages sound."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from baton.requests import Priority
from services.admission.averages import MovingAverage, SharedTime
from services.admission.ledger import Permit, PermitLedger, Waiter
from services.admission.policy import DECODE_SLOTS, predict_ttft_s


class LedgerMachine(RuleBasedStateMachine):
    """Requests come, wait, run and end in any order; the pools change size at any time."""

    def __init__(self) -> None:
        super().__init__()
        self.ledger = PermitLedger()
        self.now_s = 0.0
        self.permits: list[Permit] = []
        self.waiters: list[Waiter] = []

    @rule(seconds=st.floats(0, 10))
    def pass_time(self, seconds: float) -> None:
        self.now_s += seconds

    @rule(prefill=st.integers(0, 2), decode=st.integers(0, 2))
    def resize(self, prefill: int, decode: int) -> None:
        self.ledger.set_workers(self.now_s, prefill, decode)

    @rule(priority=st.sampled_from(Priority))
    def arrive(self, priority: Priority) -> None:
        if self.ledger.load(priority).has_room:
            self.permits.append(self.ledger.grant(self.now_s))
        else:
            self.waiters.append(self.ledger.enqueue(priority))

    @rule()
    def call_next(self) -> None:
        waiter = self.ledger.next_up()
        if waiter is None:
            return
        first = min(self.waiters, key=lambda it: (-it.priority, it.rank[1]))
        assert waiter is first
        self.ledger.leave(waiter)
        self.waiters.remove(waiter)
        self.permits.append(self.ledger.grant(self.now_s))

    @precondition(lambda self: self.waiters)
    @rule(data=st.data())
    def give_up(self, data: st.DataObject) -> None:
        waiter = data.draw(st.sampled_from(self.waiters))
        self.ledger.leave(waiter)
        self.waiters.remove(waiter)

    @precondition(lambda self: self.permits)
    @rule(data=st.data())
    def finish_prefill(self, data: st.DataObject) -> None:
        self.ledger.prefill_done(data.draw(st.sampled_from(self.permits)), self.now_s)

    @precondition(lambda self: self.permits)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        permit = data.draw(st.sampled_from(self.permits))
        self.ledger.release(permit, self.now_s)
        self.permits.remove(permit)

    @invariant()
    def accounts_balance(self) -> None:
        load = self.ledger.load()
        assert load.prefill_permits + load.decode_permits == len(self.permits)
        assert load.waiting_ahead == self.ledger.waiting == len(self.waiters)
        assert load.prefill_s >= 0
        assert load.decode_s >= 0
        for waiter in self.waiters:
            ahead = [it for it in self.waiters if it.rank < waiter.rank]
            assert self.ledger.position(waiter) == len(ahead)

    def teardown(self) -> None:
        for waiter in self.waiters:
            self.ledger.leave(waiter)
        for permit in self.permits:
            self.ledger.release(permit, self.now_s)
        assert not self.ledger.permits
        assert not self.ledger.waiting


LedgerMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestLedger = LedgerMachine.TestCase


def test_waiters_ahead_are_those_of_the_same_or_a_higher_priority() -> None:
    ledger = PermitLedger()
    for priority in (Priority.LOW, Priority.HIGH, Priority.NORMAL, Priority.NORMAL):
        ledger.enqueue(priority)
    ahead = {priority: ledger.load(priority).waiting_ahead for priority in Priority}
    assert ahead == {Priority.LOW: 4, Priority.NORMAL: 3, Priority.HIGH: 1}


def test_prompts_that_share_a_worker_share_its_time() -> None:
    clock = SharedTime()
    start = clock.read(0.0)
    clock.share(0.0, running=4, workers=1)
    clock.share(2.0, running=1, workers=1)
    assert clock.read(3.0) - start == pytest.approx(2.0 / 4 + 1.0)


def test_average_prefill_time_does_not_count_the_queue() -> None:
    """Bursts of 16 prompts of 50 ms each on one worker cost 50 ms each, waiting not included."""
    ledger = PermitLedger()
    ledger.set_workers(0.0, prefill_workers=1, decode_workers=1)
    now_s = 0.0
    for _ in range(6):
        permits = [ledger.grant(now_s) for _ in range(16)]
        for permit in permits:
            now_s += 0.05
            ledger.prefill_done(permit, now_s)
        for permit in permits:
            ledger.release(permit, now_s)
    assert ledger.load().prefill_s == pytest.approx(0.05, rel=0.7)
    burst = [ledger.grant(now_s) for _ in range(15)]
    assert predict_ttft_s(ledger.load(Priority.NORMAL)) < 15 * 0.05 * 1.7 < 2.0
    assert len(burst) == 15


def test_cold_start_and_outliers_do_not_spoil_the_average() -> None:
    average = MovingAverage()
    for _ in range(8):
        average.add(30.0)
    assert average.value == 0.0
    for _ in range(20):
        average.add(0.1)
    average.add(1000.0)
    assert average.value < 0.14


def test_average_follows_a_real_change() -> None:
    average = MovingAverage()
    for _ in range(20):
        average.add(0.1)
    for _ in range(60):
        average.add(2.0)
    assert average.value == pytest.approx(2.0, rel=0.1)


def test_capacity_is_the_slots_of_all_decode_workers() -> None:
    ledger = PermitLedger()
    ledger.set_workers(0.0, 1, 2)
    for _ in range(2 * DECODE_SLOTS):
        assert ledger.load(Priority.LOW).has_room
        ledger.grant(0.0)
    assert not ledger.load(Priority.HIGH).has_room
