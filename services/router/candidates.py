"""The fleet as routing sees it: who fits the model, how busy each is and what each has cached."""

import logging
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from baton.blocks import block_hashes, root_hash
from baton.state.fleet import FleetView
from baton.state.members import WorkerView
from baton.state.prefix_index import PrefixIndex
from baton.state.records import WorkerRole
from services.router.credits import Credits, Suspects
from services.router.model import ServedModel
from services.router.policy import DecodeView, PrefillView
from services.router.views import ViewMaker, decode_view, prefill_view

logger = logging.getLogger(__name__)

_SERVING = (WorkerRole.DECODE, WorkerRole.PREFILL)


@dataclass(frozen=True, slots=True)
class _Known:
    """What all workers of the model have in common at one generation of the fleet."""

    generation: int
    has_decode: bool
    context_length: int
    block_size: int
    kv_bytes_per_token: int
    has_misfits: bool


class Candidates:
    """Joins the registry, the prefix index and this router's own dispatches into views."""

    def __init__(
        self,
        fleet: FleetView,
        index: PrefixIndex,
        credits: Credits,
        suspects: Suspects,
        model: ServedModel,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._fleet = fleet
        self._index = index
        self._prefills = ViewMaker(credits, suspects, prefill_view)
        self._decodes = ViewMaker(credits, suspects, decode_view)
        self._model = model
        self._clock = clock
        self._facts: _Known | None = None

    def workers(self, role: WorkerRole) -> Sequence[WorkerView]:
        """Returns the workers of a role that serve this router's model with its tokenizer."""
        found = self._fleet.workers(role)
        return self._fitting(found) if self._known().has_misfits else found

    def _fitting(self, views: Sequence[WorkerView]) -> list[WorkerView]:
        model = self._model
        return [
            view
            for view in views
            if view.record.model == model.name
            and view.record.tokenizer_digest == model.tokenizer_digest
        ]

    def warn_misfits(self) -> None:
        """Logs workers of the model whose tokenizer differs; call when the fleet changed."""
        for view in (
            *self._fleet.workers(WorkerRole.PREFILL),
            *self._fleet.workers(WorkerRole.DECODE),
        ):
            record = view.record
            if (
                record.model == self._model.name
                and record.tokenizer_digest != self._model.tokenizer_digest
            ):
                logger.error(
                    "worker ignored, its tokenizer differs worker=%s model=%s expected=%s got=%s",
                    record.worker_id,
                    record.model,
                    self._model.tokenizer_digest,
                    record.tokenizer_digest,
                )

    @property
    def has_decode(self) -> bool:
        """True while at least one decode worker is known."""
        return self._known().has_decode

    @property
    def context_length(self) -> int:
        """Longest prompt plus answer that every decode worker takes, in tokens."""
        return self._known().context_length

    @property
    def block_size(self) -> int:
        """Tokens per KV block in this fleet; 0 while no worker is known."""
        return self._known().block_size

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of KV that a token takes in this fleet; 0 while no worker is known."""
        return self._known().kv_bytes_per_token

    def hashes(self, input_ids: Sequence[int], cache_salt: str) -> list[int]:
        """Returns the block hashes by which workers announce what they cache."""
        if not self.block_size:
            return []
        return block_hashes(input_ids, self.block_size, root_hash(self._model.name, cache_salt))

    def cached_tokens(self, hashes: Sequence[int]) -> Mapping[str, int]:
        """Returns how many tokens of the prompt each worker seems to hold, by incarnation."""
        depths = self._index.match(hashes, self._clock())
        return {name: depth * self.block_size for name, depth in depths.items()}

    def predict(self, incarnation: str, hashes: Sequence[int], cached_tokens: int) -> None:
        """Expects a worker to hold the rest of the prompt soon."""
        if hashes:
            missing = hashes[cached_tokens // self.block_size :]
            self._index.predict(incarnation, missing, self._clock())

    def settle(self) -> None:
        """Works in what `predict` was told, which can wait until the request is on its way."""
        self._index.settle()

    def prefill(self, cached: Mapping[str, int]) -> list[PrefillView]:
        """Returns the prefill workers, by worker id."""
        return self._prefills.views(self.workers(WorkerRole.PREFILL), cached, self._clock())

    def decode(self, cached: Mapping[str, int], excluded: Collection[str] = ()) -> list[DecodeView]:
        """Returns the decode workers except the `excluded` incarnations, by worker id."""
        workers = self.workers(WorkerRole.DECODE)
        if excluded:
            workers = [it for it in workers if it.record.incarnation not in excluded]
        return self._decodes.views(workers, cached, self._clock())

    def _known(self) -> "_Known":
        """Returns what the records say; they change only when somebody joins or leaves."""
        generation = self._fleet.generation
        if self._facts is None or self._facts.generation != generation:
            everyone = [self._fleet.workers(role) for role in _SERVING]
            fitting = [self._fitting(views) for views in everyone]
            decode, prefill = fitting
            workers = decode or prefill
            lengths = [view.record.context_length for view in decode]
            self._facts = _Known(
                generation=generation,
                has_decode=bool(decode),
                context_length=min([self._model.context_length, *filter(None, lengths)]),
                block_size=workers[0].record.block_size if workers else 0,
                kv_bytes_per_token=workers[0].record.kv_bytes_per_token if workers else 0,
                has_misfits=sum(map(len, fitting)) < sum(map(len, everyone)),
            )
        return self._facts
