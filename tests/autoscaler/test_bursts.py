"""What is kept for bursts, and what while it is calm."""

from services.autoscaler.bursts import CALM_S, FEWEST_ONSETS, Bursts

START_S = 10.0


def cycle(bursts: Bursts, now_s: float, onset: float, peak: float) -> float:
    """A calm that ends with `onset` and goes on to `peak`; returns when it is over."""
    for rate, seconds in ((0.0, 2 * CALM_S), (onset, 15.0), (peak, 20.0)):
        for _ in range(int(seconds / 5)):
            now_s += 5.0
            bursts.add(now_s, rate, START_S)
    return now_s


def test_whole_bursts_are_covered_while_it_is_loud_and_their_begin_while_it_is_calm() -> None:
    bursts, now_s = Bursts(), 0.0
    for _ in range(FEWEST_ONSETS + 1):
        now_s = cycle(bursts, now_s, onset=2.0, peak=8.0)
    assert bursts.rate() == 8.0
    for _ in range(int(2 * CALM_S / 5)):
        now_s += 5.0
        bursts.add(now_s, 0.0, START_S)
    assert bursts.is_calm
    assert bursts.rate() == 2.0
    bursts.add(now_s + 5.0, 3.0, START_S)
    assert bursts.rate() == 8.0


def test_calm_is_not_believed_before_enough_of_them_ended() -> None:
    bursts = Bursts()
    now_s = cycle(bursts, 0.0, onset=2.0, peak=8.0)
    bursts.add(now_s + 2 * CALM_S, 0.0, START_S)
    assert bursts.is_calm
    assert bursts.rate() == 8.0


def test_cover_follows_the_error_budget() -> None:
    bursts = Bursts(target=0.98)
    before = bursts.cover
    bursts.learn(ended=100, met=90)
    assert bursts.cover > before
    bursts.learn(ended=10_000, met=10_000)
    assert bursts.cover < before


def test_old_bursts_are_forgotten() -> None:
    bursts = Bursts(memory_s=100.0)
    bursts.add(0.0, 9.0, START_S)
    bursts.add(101.0, 1.0, START_S)
    assert bursts.rate() == 1.0
