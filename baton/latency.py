"""The cost model, in seconds: prefill, KV transfer and decode step, fitted online.

Each cost is linear in a few features with coefficients that are never negative:

    prefill(u, c)   = p0 + p1 u + p2 u (c + u / 2)     u uncached tokens after c cached ones;
                                                       u (c + u/2) counts attention's token pairs
    step(n, r)      = d0 + d1 n + d2 r                 n sequences that hold r tokens together
    transfer(b)     = t0 + t1 b                        b bytes, per (prefill, decode) pair

The forms are those of DistServe's profiles (a + b L + c L^2, and a + b ctx + c batch), extended by
the cached context. A model starts from declared defaults and follows its workers' samples by
recursive least squares with exponential forgetting (Haykin, Adaptive Filter Theory, ch. 10).
Outliers are weighted down (Huber) against the running scale of the residuals. State is a handful
of numbers, whatever the number of samples.

Workers fit (`WorkerCosts`) and publish what they found (`CostModel`), so that everybody who
predicts uses the same numbers.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

_FORGETTING = 0.995
"""Weight that a sample keeps per later sample: an effective window of about 200."""
_HUBER_K = 2.5
"""Residuals beyond this many running scales count as if they were this large."""
_PRIOR_VARIANCE = 25.0
"""How little the defaults are trusted, in squares of the defaults themselves."""
_MAX_VARIANCE = 1e4
"""Keeps directions that no sample excites from growing without bound under forgetting."""
_ERROR_MEMORY = 0.98


@dataclass(slots=True)
class OnlineFit:
    """A linear cost whose coefficients follow the samples.

    `defaults` are the coefficients before the first sample; they also set each feature's scale,
    so none may be zero.
    """

    defaults: tuple[float, ...]
    samples: int = 0
    error: float = 0.0
    """Running mean of |predicted - actual| / actual, predictions made before each update."""
    _weights: list[float] = field(default_factory=list)
    _covariance: list[list[float]] = field(default_factory=list)
    _scale: float = 0.0

    def __post_init__(self) -> None:
        assert all(value > 0 for value in self.defaults)
        if not self._weights:
            size = len(self.defaults)
            self._weights = [1.0] * size
            self._covariance = [
                [_PRIOR_VARIANCE if row == column else 0.0 for column in range(size)]
                for row in range(size)
            ]

    @property
    def coefficients(self) -> tuple[float, ...]:
        """The fitted coefficients, in seconds per unit of each feature."""
        return tuple(w * d for w, d in zip(self._weights, self.defaults, strict=True))

    def predict(self, features: Sequence[float]) -> float:
        """Returns the predicted seconds."""
        return sum(
            w * d * x for w, d, x in zip(self._weights, self.defaults, features, strict=True)
        )

    def update(self, features: Sequence[float], seconds: float) -> None:
        """Learns from one sample; samples that are not positive are ignored."""
        if not 0 < seconds < float("inf"):
            return
        x = [d * f / seconds for d, f in zip(self.defaults, features, strict=True)]
        residual = 1.0 - sum(w * v for w, v in zip(self._weights, x, strict=True))
        self._learn(x, residual * self._trust(residual))
        self._track(abs(residual))

    def state(self) -> dict[str, Any]:
        """Returns everything `restore` needs, as JSON-ready values."""
        return {
            "weights": self._weights,
            "covariance": self._covariance,
            "samples": self.samples,
            "error": self.error,
            "scale": self._scale,
        }

    @classmethod
    def restore(cls, defaults: tuple[float, ...], state: dict[str, Any]) -> "OnlineFit":
        """Returns a fit as `state` described it; raises ValueError when it does not fit here."""
        size = len(defaults)
        weights = [float(value) for value in state["weights"]]
        covariance = [[float(value) for value in row] for row in state["covariance"]]
        if len(weights) != size or [len(row) for row in covariance] != [size] * size:
            raise ValueError(f"the state is of another model: {len(weights)} weights, not {size}")
        return cls(
            defaults,
            int(state["samples"]),
            float(state["error"]),
            weights,
            covariance,
            float(state["scale"]),
        )

    def _trust(self, residual: float) -> float:
        limit = _HUBER_K * self._scale
        if self.samples < len(self.defaults) or abs(residual) <= limit or limit == 0:
            return 1.0
        return limit / abs(residual)

    def _learn(self, x: Sequence[float], residual: float) -> None:
        projected = [sum(p * v for p, v in zip(row, x, strict=True)) for row in self._covariance]
        denominator = _FORGETTING + sum(p * v for p, v in zip(projected, x, strict=True))
        for i, weight in enumerate(self._weights):
            self._weights[i] = max(0.0, weight + projected[i] / denominator * residual)
        for i, row in enumerate(self._covariance):
            for j in range(len(row)):
                row[j] = (row[j] - projected[i] * projected[j] / denominator) / _FORGETTING
        trace = sum(row[i] for i, row in enumerate(self._covariance))
        if trace > _MAX_VARIANCE:
            shrink = _MAX_VARIANCE / trace
            self._covariance = [[value * shrink for value in row] for row in self._covariance]

    def _track(self, relative: float) -> None:
        self.samples += 1
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
    costs: CostModel,
    uncached_tokens: int,
    cached_tokens: int,
    sequences: int,
    resident_tokens: int,
    chunk_tokens: int,
) -> float:
    """Returns the seconds to compute a prompt where `sequences` streams decode meanwhile.

    Chunks of the prompt share steps with the streams, so each chunk brings a decode step along.
    """
    alone_s = costs.prefill_s(uncached_tokens, cached_tokens)
    if not sequences:
        return alone_s
    steps = -(-uncached_tokens // chunk_tokens)
    return alone_s + steps * costs.step_s(sequences, resident_tokens)


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
