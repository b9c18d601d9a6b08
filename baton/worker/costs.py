"""What this worker's computing and receiving cost: samples in, one fitted model out.

The only place where samples are fitted. Everybody else, the worker's own policy included, reads
the `CostModel` that is published with the worker's stats.
"""

from collections import OrderedDict

from baton.engine.base import EngineSamples
from baton.latency import (
    TRANSFER_DEFAULTS,
    TRUSTED_SAMPLES,
    CostModel,
    LengthMean,
    OnlineFit,
    WorkerCosts,
    prefill_features,
    published,
)

MAX_PAIRS = 16
"""Prefill workers with a transfer fit of their own: those used last. All others share one."""


class CostBook:
    """Learns one worker's costs. Not thread-safe: used on the event loop only."""

    def __init__(self) -> None:
        self._costs = WorkerCosts()
        self._transfer = OnlineFit(TRANSFER_DEFAULTS)
        self._length = LengthMean()
        self._pull = OnlineFit(TRANSFER_DEFAULTS)
        self._pairs: OrderedDict[str, OnlineFit] = OrderedDict()
        self._model: CostModel | None = CostModel()

    @property
    def model(self) -> CostModel:
        """The costs as fitted now; the same object while nothing new was learnt."""
        if self._model is None:
            self._model = published(self._costs, self._transfer, self._pairs, self._length.tokens)
        return self._model

    def learn(self, samples: EngineSamples) -> None:
        """Takes in what an engine measured."""
        for uncached, cached, seconds in samples.prefills:
            self._costs.prefill.update(prefill_features(uncached, cached), seconds)
        for sequences, resident, seconds in samples.steps:
            self._costs.step.update((1.0, sequences, resident), seconds)
        if samples.prefills or samples.steps:
            self._model = None

    def learn_transfer(self, prefill_worker_id: str, kv_bytes: int, seconds: float) -> None:
        """Takes in what moving `kv_bytes` added to the prefill worker's computing, in seconds."""
        features = (1.0, float(kv_bytes))
        pair = self._pairs.pop(prefill_worker_id, None) or self._new_pair()
        self._pairs[prefill_worker_id] = pair
        for fit in (self._transfer, pair):
            fit.update(features, seconds)
        self._model = None

    def learn_length(self, output_tokens: int) -> None:
        """Takes in how long an answer was."""
        self._length.add(output_tokens)
        self._model = None

    def learn_pull(self, kv_bytes: int, seconds: float) -> None:
        """Takes in what moving `kv_bytes` out of another worker's cache took, in seconds.

        Unlike a prefill's transfer nothing hides it, so it is a cost of its own.
        """
        self._pull.update((1.0, float(kv_bytes)), seconds)

    def pull_s(self, kv_bytes: int) -> float:
        """Returns the predicted seconds of a pull, by the declared costs before the first one."""
        return self._pull.predict((1.0, float(kv_bytes)))

    def fits(self) -> dict[str, OnlineFit]:
        """Returns the fits that are worth keeping beyond this worker's life, by name."""
        return {
            "prefill": self._costs.prefill,
            "step": self._costs.step,
            "transfer": self._transfer,
            "pull": self._pull,
        }

    def adopt(self, name: str, fit: OnlineFit) -> None:
        """Starts from an earlier or a like worker's fit, unless this worker knows better."""
        if self.fits()[name].samples >= TRUSTED_SAMPLES:
            return
        if name == "prefill":
            self._costs.prefill = fit
        elif name == "step":
            self._costs.step = fit
        elif name == "pull":
            self._pull = fit
        else:
            self._transfer = fit
        self._model = None

    def _new_pair(self) -> OnlineFit:
        while len(self._pairs) >= MAX_PAIRS:
            self._pairs.popitem(last=False)
        return OnlineFit(TRANSFER_DEFAULTS)
