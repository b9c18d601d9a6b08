"""The cost model, in seconds: prefill, KV transfer and decode step, fitted online.

Each cost is linear in a few features with coefficients that are never negative:

    prefill(u, c)   = p0 + p1 u + p2 u (c + u / 2)     u uncached tokens after c cached ones;
                                                       u (c + u/2) counts attention's token pairs
    step(n, r)      = d0 + d1 n + d2 r                 n sequences that hold r tokens together
    transfer(b)     = t0 + t1 b                        b bytes, per (prefill, decode) pair

The forms are those of DistServe's profiles (a + b L + c L^2, and a + b ctx + c batch), extended by
the cached context. A model starts from declared defaults and follows its workers' samples by
least squares of relative errors with exponential forgetting (Haykin, Adaptive Filter Theory, ch.
10), without negative coefficients. Outliers are weighted down (Huber) against the running scale of
the residuals. State is a handful of numbers, whatever the number of samples.

Workers fit (`WorkerCosts`) and publish what they found (`CostModel`), so that everybody who
predicts uses the same numbers.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from baton.least_squares import solve_nonnegative

_FORGETTING = 0.995
"""Weight that a sample keeps per later sample: an effective window of about 200."""
_HUBER_K = 2.5
"""Residuals beyond this many running scales count as if they were this large."""
_PRIOR = 0.04
"""How much the defaults are trusted: as one sample would be in which a feature made a fifth. It
fades like a sample."""
_LEAST_PRIOR = 1e-4
_ROUNDING = 1e-9
"""Less of all that was seen could not be told from rounding."""
_SHORTEST_S = 1e-6
"""What took less is taken to have taken this: errors are relative, and nothing is free."""
_SOLVE_EVERY = 8
_SOLVE_EACH_UNTIL = 32
"""Later samples are compared with coefficients that a few of them have not changed yet."""
_ERROR_MEMORY = 0.98


@dataclass(slots=True)
class OnlineFit:
    """A linear cost whose coefficients follow the samples.

    `defaults` are the coefficients before the first sample; they also set each feature's scale,
    so none may be zero. What is kept are the sums of the normal equations, in which old samples
    fade, and the answer is worked out from them anew: a step towards each sample that is cut off at
    zero ends up where no sample ever was.
    """

    defaults: tuple[float, ...]
    samples: int = 0
    error: float = 0.0
    """Running mean of |predicted - actual| / actual, predictions made before each update."""
    _moments: list[list[float]] = field(default_factory=list)
    _target: list[float] = field(default_factory=list)
    _scale: float = 0.0
    _weights: list[float] = field(default_factory=list)
    _unsolved: int = 0

    def __post_init__(self) -> None:
        assert all(value > 0 for value in self.defaults)
        size = len(self.defaults)
        if not self._moments:
            self._moments = [[0.0] * size for _ in range(size)]
            self._target = [0.0] * size
        self._solve()

    @property
    def coefficients(self) -> tuple[float, ...]:
        """The fitted coefficients, in seconds per unit of each feature."""
        if self._unsolved:
            self._solve()
        return tuple(w * d for w, d in zip(self._weights, self.defaults, strict=True))

    def predict(self, features: Sequence[float]) -> float:
        """Returns the predicted seconds."""
        return sum(c * x for c, x in zip(self.coefficients, features, strict=True))

    def update(self, features: Sequence[float], seconds: float) -> None:
        """Learns from one sample; samples that are not positive are ignored."""
        if not 0 < seconds < float("inf"):
            return
        seconds = max(seconds, _SHORTEST_S)
        x = [d * f / seconds for d, f in zip(self.defaults, features, strict=True)]
        residual = 1.0 - sum(w * v for w, v in zip(self._weights, x, strict=True))
        trust = self._trust(residual)
        self.samples += 1
        self._learn(x, trust)
        self._track(abs(residual))

    def state(self) -> dict[str, Any]:
        """Returns everything `restore` needs, as JSON-ready values."""
        if self._unsolved:
            self._solve()
        return {
            "moments": self._moments,
            "target": self._target,
            "samples": self.samples,
            "error": self.error,
            "scale": self._scale,
        }

    @classmethod
    def restore(cls, defaults: tuple[float, ...], state: dict[str, Any]) -> "OnlineFit":
        """Returns a fit as `state` described it; raises ValueError when it does not fit here."""
        size = len(defaults)
        target = [float(value) for value in state.get("target", ())]
        moments = [[float(value) for value in row] for row in state.get("moments", ())]
        if len(target) != size or [len(row) for row in moments] != [size] * size:
            raise ValueError(f"the state is of another model: {len(target)} sums, not {size}")
        return cls(
            defaults,
            int(state["samples"]),
            float(state["error"]),
            moments,
            target,
            float(state["scale"]),
        )

    def _trust(self, residual: float) -> float:
        limit = _HUBER_K * self._scale
        if self.samples < len(self.defaults) or abs(residual) <= limit or limit == 0:
            return 1.0
        return limit / abs(residual)

    def _learn(self, x: Sequence[float], weight: float) -> None:
        for i, row in enumerate(self._moments):
            for j in range(len(row)):
                row[j] = _FORGETTING * row[j] + weight * x[i] * x[j]
            self._target[i] = _FORGETTING * self._target[i] + weight * x[i]
        self._unsolved += 1
        if self._unsolved >= _SOLVE_EVERY or self.samples < _SOLVE_EACH_UNTIL:
            self._solve()

    def _solve(self) -> None:
        """Works the coefficients out; the defaults decide where samples say next to nothing."""
        size = range(len(self.defaults))
        excited = sum(self._moments[i][i] for i in size)
        prior = max(_PRIOR * _FORGETTING**self.samples, _LEAST_PRIOR, _ROUNDING * excited)
        moments = [[self._moments[i][j] + prior * (i == j) for j in size] for i in size]
        self._weights = solve_nonnegative(moments, [t + prior for t in self._target])
        self._unsolved = 0

    def _track(self, relative: float) -> None:
        memory = min(_ERROR_MEMORY, 1 - 1 / self.samples)
        self.error = memory * self.error + (1 - memory) * min(relative, 10.0)
        self._scale = memory * self._scale + (1 - memory) * min(relative, 4 * self._scale or 10.0)


PREFILL_DEFAULTS = (5e-3, 2e-4, 1e-8)
STEP_DEFAULTS = (5e-3, 5e-4, 1e-7)
TRANSFER_DEFAULTS = (2e-3, 1e-9)

TRUSTED_SAMPLES = 32
"""With fewer samples a fit is not decided by; the declared defaults only compare alike workers."""

OUTPUT_TOKENS = 128
"""Length of an answer before any ended: what delays a stream once is spread over as many tokens,
and as many steps pass until a stream frees its KV. Tokens."""

CHUNK_TOKENS = 256
"""Most tokens of a prompt that are taken to share a step with running streams. Tokens."""

_TYPICAL_PROMPT_TOKENS = 2048
"""Prompts in a queue are taken to be no longer than this where only their sum is known."""

_LENGTH_MEMORY = 256.0
"""Answers that the mean length remembers."""

_SIGNIFICANT_DIGITS = 6


@dataclass(slots=True)
class WorkerCosts:
    """What one worker's computing costs."""

    prefill: OnlineFit = field(default_factory=lambda: OnlineFit(PREFILL_DEFAULTS))
    step: OnlineFit = field(default_factory=lambda: OnlineFit(STEP_DEFAULTS))

    def prefill_s(self, uncached_tokens: int, cached_tokens: int) -> float:
        """Returns the seconds to compute `uncached_tokens` after `cached_tokens`."""
        return self.prefill.predict(prefill_features(uncached_tokens, cached_tokens))

    def step_s(self, sequences: int, resident_tokens: int) -> float:
        """Returns the seconds of one decode step."""
        return self.step.predict((1.0, sequences, resident_tokens))


def prefill_features(uncached_tokens: int, cached_tokens: int) -> tuple[float, float, float]:
    """Returns the features of a prefill: one, tokens, attention's token pairs."""
    pairs = uncached_tokens * (cached_tokens + uncached_tokens / 2)
    return 1.0, uncached_tokens, pairs


@dataclass(slots=True)
class LengthMean:
    """The mean length of answers: of all at first, then of some hundred latest ones.

    The declared length counts as a few answers, so that the first short one does not decide.
    """

    tokens: float = OUTPUT_TOKENS
    _weight: float = 8.0

    def add(self, tokens: int) -> None:
        """Takes in an answer that ended."""
        self._weight = min(self._weight + 1, _LENGTH_MEMORY)
        self.tokens += (max(1, tokens) - self.tokens) / self._weight


@dataclass(frozen=True, slots=True)
class CostModel:
    """What a worker's computing and receiving cost: fitted coefficients as everybody reads them.

    `pairs` has the transfer coefficients from single prefill workers, by worker id; `transfer` is
    for all others. `output_tokens` is the mean length of the answers that ended here. `*_samples`
    tell how many measurements a fit has seen and `*_error` its running mean of
    |predicted - actual| / actual. Raises ValueError for coefficients that make no cost.
    """

    prefill: tuple[float, float, float] = PREFILL_DEFAULTS
    step: tuple[float, float, float] = STEP_DEFAULTS
    transfer: tuple[float, float] = TRANSFER_DEFAULTS
    pairs: Mapping[str, tuple[float, float]] = field(default_factory=dict, hash=False)
    prefill_samples: int = 0
    step_samples: int = 0
    transfer_samples: int = 0
    prefill_error: float = 0.0
    step_error: float = 0.0
    transfer_error: float = 0.0
    output_tokens: float = OUTPUT_TOKENS

    def __post_init__(self) -> None:
        coefficients = (
            *self.prefill,
            *self.step,
            *self.transfer,
            *chain.from_iterable(self.pairs.values()),
        )
        if not all(0 <= value < math.inf for value in coefficients):
            raise ValueError("coefficients must be finite and not negative")
        if not 1 <= self.output_tokens < math.inf:
            raise ValueError("an answer has at least one token")

    @property
    def knows_prefill(self) -> bool:
        """Tells whether enough prompts were measured to decide by `prefill_s`."""
        return self.prefill_samples >= TRUSTED_SAMPLES

    @property
    def knows_step(self) -> bool:
        """Tells whether enough decode steps were measured to decide by `step_s`."""
        return self.step_samples >= TRUSTED_SAMPLES

    def prefill_s(self, uncached_tokens: int, cached_tokens: int) -> float:
        """Returns the seconds to compute `uncached_tokens` after `cached_tokens`; 0 for none."""
        if uncached_tokens <= 0:
            return 0.0
        base, linear, attention = self.prefill
        context = cached_tokens + uncached_tokens / 2
        return base + uncached_tokens * (linear + attention * context)

    def queue_s(
        self, requests: int, uncached_tokens: int, token_pairs: float | None = None
    ) -> float:
        """Returns the seconds to compute `requests` prompts of `uncached_tokens` together.

        Without `token_pairs`, which see `prefill_features`, it is not known how the tokens are
        spread over the prompts. Grows with all of them.
        """
        base, linear, attention = self.prefill
        if token_pairs is None:
            token_pairs = uncached_tokens * min(uncached_tokens, _TYPICAL_PROMPT_TOKENS) / 2
        return requests * base + uncached_tokens * linear + token_pairs * attention

    def step_s(self, sequences: int, resident_tokens: int) -> float:
        """Returns the seconds of one decode step."""
        base, each, token = self.step
        return base + sequences * each + resident_tokens * token

    def transfer_s(self, prefill_worker_id: str, kv_bytes: int) -> float:
        """Returns the seconds that moving KV from a prefill worker adds to its computing."""
        base, each = self.pairs.get(prefill_worker_id, self.transfer)
        return base + kv_bytes * each


def local_prefill_s(
    alone_s: float, uncached_tokens: int, chunk_tokens: int, sequences: int, step_s: float
) -> float:
    """Returns the seconds to compute a prompt where `sequences` streams decode meanwhile.

    It takes `alone_s` without them. Chunks of the prompt share steps with the streams, so each
    chunk brings a decode step of `step_s` along.
    """
    if not sequences:
        return alone_s
    return alone_s + -(-uncached_tokens // chunk_tokens) * step_s


def interference_s(
    prefill_s: float, sequences: int, tpot_price: float, output_tokens: float = OUTPUT_TOKENS
) -> float:
    """Returns what `prefill_s` of computing between decode steps costs the `sequences` streams.

    Each stream is late by that time once, which raises its TPOT by that over its `output_tokens`;
    `tpot_price` says how many seconds of TTFT one second of TPOT is worth.
    """
    return tpot_price * sequences * prefill_s / output_tokens


def published(
    costs: WorkerCosts,
    transfer: OnlineFit,
    pairs: Mapping[str, OnlineFit],
    output_tokens: float = OUTPUT_TOKENS,
) -> CostModel:
    """Returns the fits as a worker publishes them; a pair counts from its third sample."""
    return CostModel(
        prefill=_three(costs.prefill),
        step=_three(costs.step),
        transfer=_two(transfer),
        pairs={name: _two(fit) for name, fit in pairs.items() if fit.samples > len(fit.defaults)},
        prefill_samples=costs.prefill.samples,
        step_samples=costs.step.samples,
        transfer_samples=transfer.samples,
        prefill_error=_rounded(costs.prefill.error),
        step_error=_rounded(costs.step.error),
        transfer_error=_rounded(transfer.error),
        output_tokens=_rounded(output_tokens),
    )


def _three(fit: OnlineFit) -> tuple[float, float, float]:
    first, second, third = map(_rounded, fit.coefficients)
    return first, second, third


def _two(fit: OnlineFit) -> tuple[float, float]:
    first, second = map(_rounded, fit.coefficients)
    return first, second


def _rounded(value: float) -> float:
    """Cuts digits that no measurement has, since these numbers travel with every report."""
    return float(f"{value:.{_SIGNIFICANT_DIGITS}g}")
