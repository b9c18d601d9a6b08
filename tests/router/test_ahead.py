"""What a router may start before admission has answered."""

from baton.requests import Priority
from services.router.ahead import LASTS_S, Allowances

SERVICE = "127.0.0.1:7412"


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def allowed(prompts: int) -> tuple[Allowances, Clock]:
    clock = Clock()
    allowances = Allowances(clock)
    allowances.take(SERVICE, Priority.NORMAL, 100, prompts)
    return allowances, clock


def test_prompts_like_the_granted_one_may_start() -> None:
    allowances, _ = allowed(1)

    assert allowances.allows(SERVICE, Priority.NORMAL, 100)
    assert not allowances.allows(SERVICE, Priority.NORMAL, 101)
    assert not allowances.allows(SERVICE, Priority.LOW, 100)
    assert not allowances.allows("127.0.0.1:1", Priority.NORMAL, 100)


def test_no_more_are_computed_at_once_than_allowed() -> None:
    allowances, _ = allowed(2)
    for prompt in ("a", "b"):
        assert allowances.allows(SERVICE, Priority.NORMAL, 100)
        allowances.begin(SERVICE, prompt)
    assert not allowances.allows(SERVICE, Priority.NORMAL, 100)

    allowances.end(SERVICE, "a")
    allowances.end(SERVICE, "a")

    assert allowances.allows(SERVICE, Priority.NORMAL, 100)


def test_an_old_or_withdrawn_allowance_is_none() -> None:
    allowances, clock = allowed(1)
    clock.now_s = LASTS_S
    assert not allowances.allows(SERVICE, Priority.NORMAL, 100)

    allowances.take(SERVICE, Priority.NORMAL, 100, 1)
    assert allowances.allows(SERVICE, Priority.NORMAL, 100)
    allowances.take(SERVICE, Priority.NORMAL, 100, 0)
    assert not allowances.allows(SERVICE, Priority.NORMAL, 100)
