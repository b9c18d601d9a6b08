"""How long a prompt and a generation take on average, from permits that come and go."""

import math

_WARM_UP_SAMPLES = 8
_WEIGHT = 0.1
_OUTLIER = 4.0
_RATIO_MEMORY = 0.95


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


class Ratio:
    """By how much predictions are off: the sum of what was over the sum of what was predicted.

    Old samples fade. Sums instead of a mean of quotients: the short ones, which overheads double,
    must not decide for the long ones. Stays 1 until some samples came, and within `bound` of it.
    """

    def __init__(self, bound: float = 4.0) -> None:
        self._bound = bound
        self._actual = 0.0
        self._predicted = 0.0
        self._seen = 0

    @property
    def is_known(self) -> bool:
        """Tells whether there were samples enough to go by."""
        return self._seen >= _WARM_UP_SAMPLES and self._predicted > 0

    @property
    def value(self) -> float:
        """The factor that makes predictions right."""
        if not self.is_known:
            return 1.0
        return min(self._bound, max(1 / self._bound, self._actual / self._predicted))

    def rescale(self, before: float, after: float) -> None:
        """From now on `after` is predicted for what was predicted to be `before`."""
        if before > 0 and after > 0:
            self._predicted *= after / before

    def add(self, actual: float, predicted: float) -> None:
        """Takes one sample."""
        self._seen += 1
        self._actual = _RATIO_MEMORY * self._actual + actual
        self._predicted = _RATIO_MEMORY * self._predicted + predicted


class WorkRate:
    """How much work comes per second, over the last `memory_s` or so."""

    def __init__(self, memory_s: float) -> None:
        self._memory_s = memory_s
        self._sum = 0.0
        self._at_s = 0.0

    def add(self, now_s: float, work_s: float) -> None:
        """Takes work that comes now."""
        self._sum = self.read(now_s) * self._memory_s + work_s

    def read(self, now_s: float) -> float:
        """Returns worker seconds per second."""
        self._sum *= math.exp(-max(0.0, now_s - self._at_s) / self._memory_s)
        self._at_s = max(now_s, self._at_s)
        return self._sum / self._memory_s


class PoolTime:
    """Worker seconds that the own prompts took of the pool, whichever of them took it.

    What a prompt costs is the pool's time between two that end, over many: whose time it was does
    not matter then. Measuring from grant to first token would count the queue as work; sharing the
    time evenly would find prompts cheap where those of higher classes overtake, for who is
    overtaken is not seen until it ends, if it ever does.

    `busy_s` is all of it, `full_s` the part during which prompts waited for a worker: else the
    time is mostly the mesh's own, which is no work.
    """

    def __init__(self) -> None:
        self.busy_s = 0.0
        self.full_s = 0.0
        self._wall_s = 0.0
        self._rate = 0.0
        self._is_full = False

    def read(self, wall_s: float) -> None:
        """Brings both up to `wall_s`, which never goes backwards."""
        took_s = (wall_s - self._wall_s) * self._rate
        self._wall_s = wall_s
        self.busy_s += took_s
        if self._is_full:
            self.full_s += took_s

    def share(self, wall_s: float, own: int, running: int, workers: int) -> None:
        """From `wall_s` on, `own` of `running` prompts share `workers` workers."""
        self.read(wall_s)
        self._rate = min(running, workers) * own / running if running else 0.0
        self._is_full = running > workers


class TokenClock:
    """A clock that counts the tokens which one stream would have got so far.

    Streams on a batching engine get a token per step, all of them, so a stream's age in tokens is
    the difference of two readings, whatever the load did meanwhile.
    """

    def __init__(self) -> None:
        self.tokens = 0.0
        self._wall_s = 0.0
        self._tpot_s = 1.0

    def read(self, wall_s: float) -> float:
        """Returns the tokens at `wall_s`, which never goes backwards."""
        self.tokens += (wall_s - self._wall_s) / self._tpot_s
        self._wall_s = wall_s
        return self.tokens

    def pace(self, wall_s: float, tpot_s: float) -> None:
        """From `wall_s` on a token takes `tpot_s`."""
        self.read(wall_s)
        self._tpot_s = max(tpot_s, 1e-6)
