"""The Engine protocol: what a prefill or decode worker asks of whatever computes.

Life of a request on a decode worker with remote prefill: `reserve` pins its cached prefix and
enough free blocks for the prompt, the prefill worker fills the reservation's destination, then
`generate(request, reservation, prefilled)` takes the reservation over and streams tokens. With
local prefill it is `generate(request)` alone. On a prefill worker it is `prefill`. Whoever holds
a reservation ends it by `generate` or `release`, never both.

All methods are called from the event loop and none blocks it; computing happens elsewhere.
"""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from baton.kv.transfer import KvDestination, KvReceipt, KvTransport
from baton.requests import EngineRequest, FinishReason


@dataclass(frozen=True, slots=True)
class EngineCapabilities:
    """What an engine is and what its fleet must agree on."""

    model: str
    context_length: int
    vocab_size: int
    block_size: int
    kv_bytes_per_token: int
    kv_layout: str
    kv_blocks: int
    tokenizer_digest: str
    prefills_locally: bool = True
    takes_prefilled: bool = True
    """Generates from KV that a prefill worker computed."""

    device: str = ""
    """What computes, such as "cpu" or a GPU's name; equal names compute equally fast."""


@dataclass(frozen=True, slots=True)
class EngineStats:
    """Load and KV accounting at one moment. `free + cached + owned == total` always holds.

    `kv_leases` are reservations that nobody took over or released yet. `kv_host_*` are the blocks
    of host memory below the pool; `preemptions` counts requests that lost their blocks for a while.
    `queued_pairs` are the token pairs that attention reads for the queued tokens, where known.
    """

    queued_requests: int
    queued_tokens: int
    prefilling_requests: int
    decoding_requests: int
    kv_blocks_total: int
    kv_blocks_free: int
    kv_blocks_cached: int
    kv_blocks_owned: int
    kv_leases: int
    busy_share: float
    kv_host_total: int = 0
    kv_host_used: int = 0
    preemptions: int = 0
    queued_pairs: float | None = None


class PrefillSample(NamedTuple):
    """What one prompt took to compute: `uncached_tokens` after `cached_tokens`.

    `seconds` is the time that the prompt added to the steps it was computed in: what other work
    in those steps takes without it is not part of it.
    """

    uncached_tokens: int
    cached_tokens: int
    seconds: float


class StepSample(NamedTuple):
    """What one step took that only decoded: `sequences` that held `resident_tokens` together."""

    sequences: int
    resident_tokens: int
    seconds: float


@dataclass(frozen=True, slots=True)
class EngineSamples:
    """Measurements for the cost model, oldest first."""

    prefills: tuple[PrefillSample, ...] = ()
    steps: tuple[StepSample, ...] = ()


@dataclass(frozen=True, slots=True)
class Reservation:
    """Blocks pinned for one request on a decode worker until `generate` or `release`.

    `destination` says where a prefill worker writes; `destination.cached_tokens` tokens at the
    start were found in this worker's own cache.
    """

    request_id: str
    destination: KvDestination


@dataclass(frozen=True, slots=True)
class Prefilled:
    """The result of a prefill: the first token and where the time went, in seconds.

    `cached_tokens` were found in the computing worker's prefix cache. `receipt` is None when the
    KV stayed where it was computed.
    """

    first_token: int
    logprob: float | None
    receipt: KvReceipt | None
    queue_s: float
    compute_s: float
    cached_tokens: int


@dataclass(frozen=True, slots=True)
class TokenEvent:
    """Tokens of one request that became ready together; `finish_reason` is set on the last event.

    `prefilled` is set on the first event of a locally prefilled request. `logprobs` is parallel to
    `token_ids` when the request asked for it, else empty.
    """

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...] = ()
    finish_reason: FinishReason | None = None
    prefilled: Prefilled | None = None


class BlocksStored(NamedTuple):
    """Blocks became reusable; `hashes` is a run of one chain below `parent`."""

    parent: int
    hashes: tuple[int, ...]


class BlocksRemoved(NamedTuple):
    """Blocks are no longer reusable."""

    hashes: tuple[int, ...]


class BlocksCleared(NamedTuple):
    """Nothing is reusable any more."""


KvEvent = BlocksStored | BlocksRemoved | BlocksCleared


class Engine(Protocol):
    """Computes prompts and generates tokens. See the module for the life of a request."""

    @property
    def capabilities(self) -> EngineCapabilities:
        """Known once `start` returned."""
        ...

    async def start(self, transport: KvTransport) -> None:
        """Loads the model, allocates the pool, starts `transport` on it and warms up.

        After `stop` it may be started again on another transport; the cache is empty then.
        Raises StartupError naming what is missing.
        """
        ...

    async def stop(self) -> None:
        """Aborts what runs and frees everything. Stops the transport."""
        ...

    def match(self, request: EngineRequest) -> int:
        """Returns how many prompt tokens the cache holds now. Pins nothing."""
        ...

    def reserve(self, request: EngineRequest) -> Reservation:
        """Pins the cached prefix and blocks for the rest of the prompt.

        Raises OverloadedError (KV_POOL_FULL) when the pool cannot hold it now and
        InvalidRequestError when it never can.
        """
        ...

    def release(self, reservation: Reservation) -> None:
        """Frees a reservation that `generate` did not take over. Call once no peer writes to it."""
        ...

    def keep(self, reservation: Reservation, input_ids: Sequence[int]) -> None:
        """Ends a reservation whose blocks hold the verified KV of `input_ids`: they stay cached."""
        ...

    async def send_cached(self, request: EngineRequest, destination: KvDestination) -> KvReceipt:
        """Pushes blocks of the prompt that are cached here to `destination`; computes nothing.

        Raises PreconditionError (PREFIX_GONE) when the cache does not hold all of them.
        Cancelling the call stops the work; it returns once no write can happen any more.
        """
        ...

    async def prefill(self, request: EngineRequest, destination: KvDestination) -> Prefilled:
        """Computes the prompt, pushes its KV to `destination` chunk by chunk, picks a token.

        Cancelling the call stops the work; it returns once no write can happen any more.
        """
        ...

    def generate(
        self,
        request: EngineRequest,
        reservation: Reservation | None = None,
        prefilled: Prefilled | None = None,
    ) -> AsyncIterator[TokenEvent]:
        """Streams tokens until a finish reason. Closing the iterator aborts and frees.

        With `reservation` and `prefilled`, whose receipt the caller verified, the first event is
        the prefill worker's first token, at once, and decoding goes on from there. Without them
        the prompt is computed here first. Either way all tokens appear in the stream.
        """
        ...

    def stats(self) -> EngineStats:
        """Returns the figures of this moment."""
        ...

    def take_samples(self) -> EngineSamples:
        """Returns what was measured since the last call; a bounded number, the newest ones."""
        ...

    def take_kv_events(self) -> Sequence[KvEvent]:
        """Returns what changed in the prefix cache since the last call, in order."""
        ...

    def cached_hashes(self) -> Sequence[int]:
        """Returns the hashes of all reusable blocks now, for a snapshot."""
        ...
