"""The door: nothing lost, nothing doubled, whatever comes in which order."""

import random

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from baton.config import Qos
from baton.latency import TRUSTED_SAMPLES, CostModel
from baton.requests import Priority
from services.admission.choice import POLICIES, make_door
from services.admission.door import Called, Dismissed, Door, Turned
from services.admission.ladder import (
    CLASS_LOWERED,
    HOLD_S,
    LOCAL_PREFILL_PREFERRED,
    MAX_TOKENS_CAPPED,
    UNDEGRADED,
    Ladder,
)
from services.admission.ledger import Elsewhere, Permit, Pools
from services.admission.policy import DecodePool, PermitRequest, Streams
from services.admission.waiting import Waiter

COSTS = CostModel(
    prefill=(0.01, 1e-3, 0.0),
    step=(0.02, 1e-3, 1e-6),
    prefill_samples=TRUSTED_SAMPLES,
    step_samples=TRUSTED_SAMPLES,
)


def pools(prefill: int, decode: int) -> Pools:
    return Pools(prefill, DecodePool(decode, COSTS, kv_tokens=20_000), COSTS)


def door_with(policy: str = "predictive", **qos: object) -> Door:
    given = Qos.model_validate({"policy": policy, **qos})
    door = make_door(given, random.Random(1))
    door.set_pools(0.0, pools(1, 1))
    return door


class DoorMachine(RuleBasedStateMachine):
    """Requests come, wait, give up, run and end in any order; pools and replicas come and go."""

    policy = "predictive"

    def __init__(self) -> None:
        super().__init__()
        self.door = door_with(self.policy, tenants={"a": {"concurrent": 5}})
        self.now_s = 0.0
        self.permits: list[Permit] = []
        self.waiters: list[Waiter] = []

    def call_in(self) -> None:
        for called in self.door.call_in(self.now_s):
            self.waiters.remove(called.waiter)
            if isinstance(called, Dismissed):
                assert called.waiter.request.priority is not Priority.HIGH
            else:
                self.permits.append(called.permit)

    @rule(seconds=st.floats(0, 10))
    def pass_time(self, seconds: float) -> None:
        self.now_s += seconds
        for late in self.door.sweep(self.now_s):
            assert late.turned.retry_after_s > 0
            assert late.waiter.request.priority is not Priority.HIGH
            self.waiters.remove(late.waiter)
        self.call_in()

    @rule(prefill=st.integers(0, 2), decode=st.integers(0, 2))
    def resize(self, prefill: int, decode: int) -> None:
        self.door.set_pools(self.now_s, pools(prefill, decode))
        self.call_in()

    @rule(
        priority=st.sampled_from(Priority),
        tenant=st.sampled_from("ab"),
        tokens=st.integers(0, 4000),
        burst=st.integers(1, 20),
    )
    def arrive(self, priority: Priority, tenant: str, tokens: int, burst: int) -> None:
        for _ in range(burst):
            request = PermitRequest(
                "r", tenant, priority, prompt_tokens=tokens, uncached_tokens=tokens // 2
            )
            answer = self.door.arrive(self.now_s, request)
            if isinstance(answer, Turned):
                assert answer.retry_after_s > 0
            else:
                self.waiters.append(answer)
                self.call_in()

    @rule(others=st.integers(0, 200), quota=st.none() | st.integers(0, 80))
    def hear_from_others(self, others: int, quota: int | None) -> None:
        ledger = self.door.ledger
        ledger.elsewhere = Elsewhere(others // 2, others // 2, 100, 0.1, Streams(others // 2, 99))
        ledger.quota = quota
        self.call_in()

    @precondition(lambda self: self.waiters)
    @rule(data=st.data())
    def give_up(self, data: st.DataObject) -> None:
        waiter = data.draw(st.sampled_from(self.waiters))
        self.waiters.remove(waiter)
        self.door.leave(waiter)
        self.call_in()

    @precondition(lambda self: self.permits)
    @rule(data=st.data())
    def finish_prefill(self, data: st.DataObject) -> None:
        self.door.prefill_done(data.draw(st.sampled_from(self.permits)), self.now_s)
        self.call_in()

    @precondition(lambda self: self.permits)
    @rule(data=st.data(), output_tokens=st.none() | st.integers(1, 400))
    def release(self, data: st.DataObject, output_tokens: int | None) -> None:
        permit = data.draw(st.sampled_from(self.permits))
        self.permits.remove(permit)
        self.door.release(permit, self.now_s, output_tokens)
        self.call_in()

    @invariant()
    def accounts_balance(self) -> None:
        door = self.door
        load = door.load(self.now_s)
        assert door.ledger.permits == len(self.permits)
        assert len(door.room) == len(self.waiters)
        assert sum(door.queue_lengths().values()) == len(self.waiters)
        assert sum(door.tenants.inside.values()) == len(self.permits) + len(self.waiters)
        assert door.tenants.inside["a"] <= 5
        assert load.backlog_s >= 0
        assert load.waiting_ahead == len(self.waiters)
        ahead_s = sum(waiter.work_s for waiter in self.waiters)
        assert load.ahead_s == pytest.approx(ahead_s, abs=1e-6)
        streams = load.forecast.at(1.0)
        everybody = len(self.permits) + len(self.waiters) + load.decode_permits
        assert 0 <= streams.sequences <= everybody + door.ledger.elsewhere.prefilling + 1e-6

    def teardown(self) -> None:
        for waiter in self.waiters:
            self.door.leave(waiter)
        for permit in self.permits:
            self.door.release(permit, self.now_s)
        assert self.door.is_empty
        assert not self.door.tenants.inside
        self.door.ledger.elsewhere = Elsewhere()
        load = self.door.load(self.now_s)
        assert (load.backlog_s, load.ahead_s, load.streams) == (0.0, 0.0, (0, 0))
        assert load.forecast.at(1.0) == (0, 0)


class SloNowMachine(DoorMachine):
    policy = "slo_now"


class QueueEstimateMachine(DoorMachine):
    policy = "queue_estimate"


_SETTINGS = settings(max_examples=60, stateful_step_count=50, deadline=None)
for machine in (DoorMachine, SloNowMachine, QueueEstimateMachine):
    machine.TestCase.settings = _SETTINGS
TestPredictive = DoorMachine.TestCase
TestSloNow = SloNowMachine.TestCase
TestQueueEstimate = QueueEstimateMachine.TestCase


class Crowd:
    """Requests at a door that wait, give up, run and end at random."""

    def __init__(self, policy: str) -> None:
        self.rng = random.Random(7)
        self.door = door_with(policy)
        self.permits: list[Permit] = []
        self.waiters: list[Waiter] = []
        self.admitted = 0

    def arrive(self, now_s: float) -> None:
        answer = self.door.arrive(now_s, random_request(self.rng))
        if isinstance(answer, Waiter):
            self.waiters.append(answer)
        for late in self.door.sweep(now_s):
            self.waiters.remove(late.waiter)
        if self.waiters and self.rng.random() < 0.2:
            self.door.leave(self.waiters.pop(self.rng.randrange(len(self.waiters))))

    def progress(self, now_s: float) -> None:
        if not self.permits:
            return
        permit = self.rng.choice(self.permits)
        if permit.prefilled_s is None and self.rng.random() < 0.7:
            self.door.prefill_done(permit, now_s)
        else:
            self.permits.remove(permit)
            self.door.release(permit, now_s, self.rng.choice([None, 1, 20, 300]))

    def call_in(self, now_s: float) -> None:
        for called in self.door.call_in(now_s):
            self.waiters.remove(called.waiter)
            if isinstance(called, Dismissed):
                assert called.waiter.request.priority is not Priority.HIGH
            else:
                self.permits.append(called.permit)
                self.admitted += 1

    def leave(self, now_s: float) -> None:
        for waiter in self.waiters:
            self.door.leave(waiter)
        for permit in self.permits:
            self.door.release(permit, now_s)


@pytest.mark.parametrize("policy", POLICIES)
def test_ten_thousand_requests_leave_nothing_behind(policy: str) -> None:
    crowd, now_s = Crowd(policy), 0.0
    for _ in range(10_000):
        now_s += crowd.rng.expovariate(40.0)
        crowd.arrive(now_s)
        for _ in range(crowd.rng.randint(0, 2)):
            crowd.progress(now_s)
        crowd.call_in(now_s)
    assert crowd.admitted > 1000
    crowd.leave(now_s)
    assert crowd.door.is_empty
    assert not crowd.door.tenants.inside
    assert crowd.door.load(now_s).streams == (0, 0)


def random_request(rng: random.Random) -> PermitRequest:
    tokens = rng.randint(1, 200)
    return PermitRequest(
        "r",
        tenant=rng.choice(["", "a", "b"]),
        priority=rng.choice(list(Priority)),
        prompt_tokens=tokens,
        uncached_tokens=rng.randint(1, tokens),
        max_tokens=256,
    )


def test_no_decode_worker_is_not_an_overload() -> None:
    door = door_with()
    door.set_pools(0.0, pools(1, 0))
    answer = door.arrive(0.0, PermitRequest("r"))
    assert isinstance(answer, Turned)
    assert answer.reason == "NO_WORKER"


def test_retries_are_spread() -> None:
    door = door_with(tenants={"default": {"concurrent": 1}})
    door.arrive(0.0, PermitRequest("r"))
    answers = [door.arrive(0.0, PermitRequest("r")) for _ in range(20)]
    retries = {answer.retry_after_s for answer in answers if isinstance(answer, Turned)}
    assert len(retries) == 20


def test_ladder_is_climbed_at_once_and_left_step_by_step() -> None:
    ladder = Ladder()

    def names(now_s: float, load: float) -> tuple[str, ...]:
        return ladder.degrade(now_s, Priority.NORMAL, load, 1000, 100).names

    every = (MAX_TOKENS_CAPPED, LOCAL_PREFILL_PREFERRED, CLASS_LOWERED)
    assert names(0.0, 0.5) == ()
    assert names(0.1, 0.99) == every
    assert names(0.2, 0.1) == every
    assert names(0.1 + HOLD_S, 0.9) == every
    assert names(0.2 + HOLD_S, 0.5) == every[:2]
    assert names(0.3 + 2 * HOLD_S, 0.5) == every[:1]
    assert names(0.4 + 3 * HOLD_S, 0.75) == every[:1]
    assert names(0.5 + 3 * HOLD_S, 0.5) == ()


def test_high_is_never_degraded_and_short_answers_lose_nothing() -> None:
    ladder = Ladder()
    assert ladder.degrade(0.0, Priority.HIGH, 5.0, 1000, 100) == UNDEGRADED
    low = ladder.degrade(0.0, Priority.LOW, 0.75, 50, 100)
    assert (low.max_tokens, low.names) == (None, ())
    capped = ladder.degrade(0.0, Priority.LOW, 0.75, 1000, 100)
    assert (capped.max_tokens, capped.names) == (100, (MAX_TOKENS_CAPPED,))
    lowered = ladder.degrade(0.0, Priority.NORMAL, 2.0, 1000, 100)
    assert lowered.priority is Priority.LOW


def test_a_loaded_mesh_degrades_before_it_rejects() -> None:
    """Prompts come twice as fast as they are computed: first answers get shorter, then some are
    sent away."""
    door, rejected_s, capped_s = door_with(), list[float](), list[float]()
    for number in range(300):
        now_s = number * 0.055
        request = PermitRequest("r", prompt_tokens=100, uncached_tokens=100, max_tokens=4096)
        if isinstance(door.arrive(now_s, request), Turned):
            rejected_s.append(now_s)
        called = [each for each in door.call_in(now_s) if isinstance(each, Called)]
        capped_s += [
            each.waiter.arrived_s for each in called if MAX_TOKENS_CAPPED in each.degradation.names
        ]
        if number % 2:
            permit = next(iter(door.ledger.prefilling))
            door.prefill_done(permit, now_s)
            door.release(permit, now_s)
    assert capped_s[0] < rejected_s[0]


def test_who_comes_too_late_is_dismissed_when_its_turn_comes() -> None:
    door = door_with()
    for _ in range(2):
        door.arrive(0.0, prompt(400, Priority.HIGH))
    assert len(list(door.call_in(0.0))) == 2
    waiter = door.arrive(0.0, prompt(300, Priority.NORMAL))
    assert isinstance(waiter, Waiter)
    assert not list(door.call_in(0.0))
    (late,) = door.call_in(1.6)
    assert isinstance(late, Dismissed)
    assert late.turned.reason == "TTFT_UNATTAINABLE"
    assert not len(door.room)


def test_low_is_held_to_its_threshold_by_the_queue_not_by_its_own_prompt() -> None:
    door = door_with(low_priority_threshold_ms=500)
    assert isinstance(door.arrive(0.0, prompt(900, Priority.LOW)), Waiter)
    assert list(door.call_in(0.0))
    assert isinstance(door.arrive(0.0, prompt(900, Priority.LOW)), Turned)


def prompt(tokens: int, priority: Priority) -> PermitRequest:
    return PermitRequest("r", priority=priority, prompt_tokens=tokens, uncached_tokens=tokens)


def test_queue_holds_whom_the_target_lets_in() -> None:
    """Prompts of 0.11 s: two workers compute more of them within 10 s than one decode worker has
    slots, and the target, not the length of the queue, decides who is turned away."""
    door = door_with(ttft_slo_ms=10_000.0, tpot_slo_ms=1e6)
    door.set_pools(0.0, pools(2, 1))
    now_s = 0.0
    for number in range(20):
        assert isinstance(door.arrive(now_s, asked(f"warm {number}")), Waiter)
        (called,) = door.call_in(now_s)
        assert isinstance(called, Called)
        now_s += 0.11
        door.prefill_done(called.permit, now_s)
        door.release(called.permit, now_s, 1)
    answers = [door.arrive(now_s, asked(str(number))) for number in range(200)]
    taken = [answer for answer in answers if isinstance(answer, Waiter)]
    turned = {answer.reason for answer in answers if isinstance(answer, Turned)}
    assert len(taken) > 100
    assert turned == {"TTFT_UNATTAINABLE"}


def asked(name: str) -> PermitRequest:
    return PermitRequest(name, prompt_tokens=100, uncached_tokens=100)


def let_in(door: Door, request: PermitRequest) -> Permit:
    assert isinstance(door.arrive(0.0, request), Waiter)
    (called,) = door.call_in(0.0)
    assert isinstance(called, Called)
    return called.permit


def test_routers_may_start_ahead_while_asking_would_change_nothing() -> None:
    door = door_with()
    door.set_pools(0.0, pools(3, 1))
    assert door.ahead() == 3

    permits = [let_in(door, asked(f"r{number}")) for number in range(3)]
    assert door.ahead() == 3

    door.ledger.quota = 5
    assert door.ahead() == 0
    door.ledger.quota = None

    half = door.ledger.pools.decode.capacity // 2
    permits += [door.take_in(0.0, asked(f"s{number}")) for number in range(half - 3)]
    assert door.ahead() == 3
    permits.append(door.take_in(0.0, asked("one more")))
    assert door.ahead() == 0

    for permit in permits:
        door.release(permit, 1.0)
    assert door.is_empty
    assert not door.tenants.inside


def test_nobody_starts_ahead_where_a_tenant_is_limited() -> None:
    assert door_with(tenants={"a": {"weight": 2}}).ahead() == 1
    assert door_with(tenants={"a": {"concurrent": 5}}).ahead() == 0
    assert door_with(tenants={"a": {"requests_per_s": 5}}).ahead() == 0


def test_nobody_starts_ahead_while_somebody_waits() -> None:
    door = door_with()
    door.set_pools(0.0, pools(1, 1))
    assert isinstance(door.arrive(0.0, asked("waits")), Waiter)
    assert door.ahead() == 0
