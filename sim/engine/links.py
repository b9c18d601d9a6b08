"""The network: each worker has one NIC, full duplex, shared fairly by the transfers on it.

A transfer runs at the smaller of its share of the sender's and of the receiver's bandwidth. A share
that one end cannot use is not given to others, which is a little pessimistic under contention and
keeps every change local to two NICs. Bytes arrive chunk by chunk, as prefill computes them.
"""

from collections.abc import Callable
from dataclasses import dataclass

from sim.engine.events import EventLoop

_EPSILON_BYTES = 1e-3


@dataclass(frozen=True, slots=True)
class LinkSpec:
    """A worker's network: bytes per second each way, and seconds until a transfer is confirmed."""

    bandwidth: float = 25e9
    latency_s: float = 2e-3


class Transfer:
    """KV on its way from one worker to another. `on_idle` is called when all so far has left."""

    __slots__ = ("backlog", "bytes", "on_idle", "rate", "receiver", "sender", "since_s", "version")

    def __init__(self, sender: int, receiver: int, on_idle: Callable[[], None]) -> None:
        self.sender = sender
        self.receiver = receiver
        self.on_idle = on_idle
        self.backlog = 0.0
        self.bytes = 0.0
        self.rate = 0.0
        self.since_s = 0.0
        self.version = 0

    @property
    def is_idle(self) -> bool:
        """True when everything pushed so far has left."""
        return self.backlog <= 0


class Network:
    """All transfers under way, by the NICs they use."""

    def __init__(self, loop: EventLoop, spec: LinkSpec) -> None:
        self.spec = spec
        self._loop = loop
        self._sending: dict[int, dict[Transfer, None]] = {}
        self._receiving: dict[int, dict[Transfer, None]] = {}

    def push(self, transfer: Transfer, count: float) -> None:
        """Adds `count` bytes to a transfer."""
        if count <= 0:
            return
        transfer.bytes += count
        if transfer.is_idle:
            transfer.backlog = count
            self._sending.setdefault(transfer.sender, {})[transfer] = None
            self._receiving.setdefault(transfer.receiver, {})[transfer] = None
            self._share_again(transfer)
        else:
            self._settle(transfer)
            transfer.backlog += count
            self._reschedule(transfer)

    def _share_again(self, cause: Transfer) -> None:
        """Gives every transfer on the two NICs of `cause` its share from now on."""
        sending, receiving = self._sending[cause.sender], self._receiving[cause.receiver]
        for transfer in {**sending, **receiving}:
            self._settle(transfer)
            self._reschedule(transfer)

    def _settle(self, transfer: Transfer) -> None:
        now_s = self._loop.now_s
        sent = transfer.rate * (now_s - transfer.since_s)
        # Never idle before its event says so, whatever rounding did.
        transfer.backlog = max(transfer.backlog - sent, _EPSILON_BYTES)
        transfer.since_s = now_s

    def _reschedule(self, transfer: Transfer) -> None:
        sharers = max(len(self._sending[transfer.sender]), len(self._receiving[transfer.receiver]))
        transfer.since_s = self._loop.now_s
        transfer.rate = self.spec.bandwidth / sharers
        transfer.version += 1
        delay_s = transfer.backlog / transfer.rate
        self._loop.after(delay_s, self._drained, (transfer, transfer.version))

    def _drained(self, event: tuple[Transfer, int]) -> None:
        transfer, version = event
        if version != transfer.version:
            return
        transfer.backlog = transfer.rate = 0.0
        transfer.version += 1
        del self._sending[transfer.sender][transfer]
        del self._receiving[transfer.receiver][transfer]
        self._share_again(transfer)
        transfer.on_idle()
