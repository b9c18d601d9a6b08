"""Which bit of a mask stands for which worker."""

from collections.abc import Sequence


class WorkerSlots:
    """Gives each worker one bit. A retired bit comes back into use only after `release`.

    `live_mask` has the bits of all present workers, `retired_mask` those to be swept out.
    """

    def __init__(self) -> None:
        self._bits: dict[str, int] = {}
        self._names: list[str] = []
        self._free: list[int] = []
        self.live_mask = 0
        self.retired_mask = 0

    def __contains__(self, worker: str) -> bool:
        return worker in self._bits

    def bit(self, worker: str) -> int:
        """Returns the worker's bit, 0 when it is unknown."""
        return self._bits.get(worker, 0)

    def assign(self, worker: str) -> int:
        """Returns the worker's bit, a fresh one when it is new."""
        bit = self._bits.get(worker)
        if bit is None:
            bit = self._fresh_bit(worker)
            self._bits[worker] = bit
            self.live_mask |= bit
        return bit

    def _fresh_bit(self, worker: str) -> int:
        if self._free:
            slot = self._free.pop()
            self._names[slot] = worker
            return 1 << slot
        self._names.append(worker)
        return 1 << (len(self._names) - 1)

    def retire(self, worker: str) -> int:
        """Takes the worker's bit away from it and returns it, 0 when it is unknown."""
        bit = self._bits.pop(worker, 0)
        self.live_mask &= ~bit
        self.retired_mask |= bit
        return bit

    def release(self, mask: int) -> None:
        """Makes swept-out bits usable again."""
        assert mask & self.live_mask == 0
        self.retired_mask &= ~mask
        self._free.extend(_positions(mask))

    def names(self, mask: int) -> Sequence[str]:
        """Returns the workers whose bits are set."""
        names = self._names
        if mask & (mask - 1) == 0:
            return (names[mask.bit_length() - 1],) if mask else ()
        return [names[slot] for slot in _positions(mask)]


def _positions(mask: int) -> list[int]:
    if mask.bit_count() > 24:
        # One pass over the digits beats peeling bits off once there are many.
        return [slot for slot, digit in enumerate(bin(mask)[:1:-1]) if digit == "1"]
    found = []
    while mask:
        low = mask & -mask
        found.append(low.bit_length() - 1)
        mask ^= low
    return found
