"""The central queue: classes, deadlines, tenants' shares and promotion."""

import itertools
import random

import pytest

from baton.requests import Priority
from services.admission.policy import PermitRequest
from services.admission.tenants import DEFAULT_TENANT, TenantGate, TenantLimit
from services.admission.waiting import Waiter, WaitingRoom

_NUMBERS = itertools.count()


def waiter(
    priority: Priority = Priority.NORMAL, tenant: str = "", due_s: float = 1.0, tokens: int = 100
) -> Waiter:
    request = PermitRequest("r", tenant=tenant, priority=priority, uncached_tokens=tokens)
    return Waiter(request, next(_NUMBERS), 0.0, due_s, work_s=tokens / 1000)


def room(promote_after_s: float = 1e9, gate: TenantGate | None = None) -> WaitingRoom:
    return WaitingRoom(promote_after_s, (gate or TenantGate({})).weight_of)


def served(queue: WaitingRoom, count: int, now_s: float = 0.0) -> list[Waiter]:
    order = []
    for _ in range(count):
        head = queue.head(now_s)
        assert head is not None
        queue.remove(head)
        queue.charge(head)
        order.append(head)
    return order


def test_order_is_class_then_deadline_then_arrival() -> None:
    queue = room()
    low, late = waiter(Priority.LOW, due_s=0.1), waiter(due_s=5.0)
    soon, soon_too = waiter(due_s=2.0), waiter(due_s=2.0)
    high = waiter(Priority.HIGH, due_s=9.0)
    for each in (low, late, soon, soon_too, high):
        queue.add(each, 0.0)
    assert [queue.position(each) for each in (high, soon, soon_too, late, low)] == [0, 1, 2, 3, 4]
    assert served(queue, 5) == [high, soon, soon_too, late, low]
    assert queue.head(0.0) is None


def test_tenants_share_by_uncached_tokens_not_by_requests() -> None:
    """One tenant's prompts are ten times as long, so it gets a tenth of the turns."""
    queue = room()
    for _ in range(200):
        queue.add(waiter(tenant="long", tokens=1000), 0.0)
        queue.add(waiter(tenant="short", tokens=100), 0.0)
    turns = [each.request.tenant for each in served(queue, 110)]
    assert turns.count("long") == pytest.approx(10, abs=1)
    assert turns.count("short") == pytest.approx(100, abs=1)


def test_weights_make_shares_unequal() -> None:
    gate = TenantGate({"gold": TenantLimit(weight=3.0)})
    queue = room(gate=gate)
    for _ in range(100):
        queue.add(waiter(tenant="gold"), 0.0)
        queue.add(waiter(tenant="tin"), 0.0)
    turns = [each.request.tenant for each in served(queue, 80)]
    assert turns.count("gold") == pytest.approx(60, abs=2)


def test_who_was_away_does_not_save_up_turns() -> None:
    queue = room()
    for _ in range(50):
        queue.add(waiter(tenant="steady"), 0.0)
    served(queue, 40)
    for _ in range(10):
        queue.add(waiter(tenant="newcomer"), 0.0)
    turns = [each.request.tenant for each in served(queue, 10)]
    assert turns.count("steady") >= 4


def test_nobody_starves_under_a_stream_of_higher_priority() -> None:
    queue = room(promote_after_s=10.0)
    low = waiter(Priority.LOW)
    queue.add(low, 0.0)
    for second in range(60):
        queue.add(waiter(Priority.HIGH, due_s=second + 1.0), float(second))
        if served(queue, 1, float(second)) == [low]:
            break
    assert second == 20
    assert low.band is Priority.HIGH
    assert queue.promotions == 2


def test_what_is_ahead_is_the_own_class_and_those_above() -> None:
    queue = room()
    for priority in (Priority.LOW, Priority.HIGH, Priority.NORMAL, Priority.NORMAL):
        queue.add(waiter(priority), 0.0)
    ahead = {priority: queue.ahead_of(priority) for priority in Priority}
    assert [ahead[priority][0] for priority in Priority] == [4, 3, 1]
    assert ahead[Priority.LOW][1] == pytest.approx(0.4)


def test_leaving_from_the_middle_keeps_the_books() -> None:
    rng, queue = random.Random(3), room()
    waiters = [
        waiter(rng.choice(list(Priority)), rng.choice("abc"), rng.random()) for _ in range(60)
    ]
    for each in waiters:
        queue.add(each, 0.0)
    for each in rng.sample(waiters, 60):
        queue.remove(each)
    assert len(queue) == 0
    assert queue.ahead_of(Priority.LOW) == (0, 0.0)


def test_concurrency_limit_counts_who_waits_and_who_runs() -> None:
    gate = TenantGate({DEFAULT_TENANT: TenantLimit(concurrent=2), "free": TenantLimit()})
    for _ in range(2):
        assert gate.check(0.0, "a", 1.0) is None
        gate.enter("a")
    refused = gate.check(0.0, "a", 1.0)
    assert refused is not None
    assert refused.reason == "TENANT_LIMIT"
    assert gate.check(0.0, "b", 1.0) is None
    assert gate.check(0.0, "free", 1.0) is None
    gate.leave("a")
    assert gate.check(0.0, "a", 1.0) is None


def test_rate_limit_lets_bursts_through_and_says_when_to_come_back() -> None:
    gate = TenantGate({"a": TenantLimit(requests_per_s=10.0)})
    answers = [gate.check(0.0, "a", 0.0) for _ in range(21)]
    assert answers[:20] == [None] * 20
    assert answers[20] is not None
    assert answers[20].drain_s == pytest.approx(0.1)
    assert gate.check(0.11, "a", 0.0) is None
    admitted = sum(gate.check(0.2 + n / 1000, "a", 0.0) is None for n in range(10_000))
    assert admitted == pytest.approx(100, abs=3)
