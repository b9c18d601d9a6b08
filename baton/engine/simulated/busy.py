"""How busy a simulated engine was, in constant time and space."""


class BusyShare:
    """The share of about the last second in which steps ran, over two windows of one second."""

    def __init__(self) -> None:
        self._window_s = 0.0
        self._busy_s = 0.0
        self._previous_s = 0.0

    def add(self, began_s: float, ended_s: float) -> None:
        """Counts a step, wholly in the window in which it ended."""
        self._roll(ended_s)
        self._busy_s += ended_s - began_s

    def read(self, now_s: float) -> float:
        """Returns the share, from 0 to 1."""
        self._roll(now_s)
        into = min(max(now_s - self._window_s, 0.0), 1.0)
        return min(1.0, self._busy_s + self._previous_s * (1.0 - into))

    def _roll(self, now_s: float) -> None:
        passed = int(now_s - self._window_s)
        if passed > 0:
            self._previous_s = min(self._busy_s, 1.0) if passed == 1 else 0.0
            self._busy_s = 0.0
            self._window_s += passed
