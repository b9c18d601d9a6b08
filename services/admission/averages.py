"""How long a prompt and a generation take on average, from permits that come and go."""

_WARM_UP_SAMPLES = 8
_WEIGHT = 0.1
_OUTLIER = 4.0


class MovingAverage:
    """An exponentially weighted mean that a cold start and single outliers cannot spoil.

    The first samples pay for connections and warm-up, so they are not believed and the mean stays
    0 ("unknown"). After that a sample counts for at most four times the mean; a real change of
    load still gets through within some ten samples, because the bound moves with the mean.
    """

    def __init__(self) -> None:
        self.value = 0.0
        self._seen = 0

    def add(self, sample: float) -> None:
        """Takes a sample, in seconds."""
        self._seen += 1
        if self._seen <= _WARM_UP_SAMPLES:
            return
        if self.value == 0.0:
            self.value = sample
            return
        self.value += _WEIGHT * (min(sample, _OUTLIER * self.value) - self.value)


class SharedTime:
    """A clock that tells how much worker time each of several concurrent requests took.

    While `running` requests share `workers` workers, each takes workers/running of the time, at
    most all of it. Differences between two readings add up to the pool's busy time over all
    requests, so their mean is what one request costs, however many ran at once. Measuring
    from grant to first token instead would count the queue twice: once in the queue length and
    once in the average.
    """

    def __init__(self) -> None:
        self._now_s = 0.0
        self._wall_s = 0.0
        self._rate = 1.0

    def read(self, wall_s: float) -> float:
        """Returns the shared time at `wall_s`, which never goes backwards."""
        self._now_s += (wall_s - self._wall_s) * self._rate
        self._wall_s = wall_s
        return self._now_s

    def share(self, wall_s: float, running: int, workers: int) -> None:
        """From `wall_s` on, `running` requests share `workers` workers."""
        self.read(wall_s)
        self._rate = min(1.0, workers / running) if running else 1.0
