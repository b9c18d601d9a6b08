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
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
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
