"""The wall clock of one process, which a fault may set.

libfaketime (Debian's package `faketime`) stands between the process and the system and reads from
a file how far the clock is off. Monotonic time stays true, as it does when a host's clock is set.
"""

import os
from pathlib import Path

_LIBRARIES = tuple(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))

CAN_STEP = bool(_LIBRARIES) and "CHAOS_CLOCKS" in os.environ
"""Whether the library is here and asked for: it slows processes down, decoding ten times."""

_REREAD_S = 1


class Clock:
    """How far one process's clock is off, for all its lives."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.step(0)

    @property
    def environ(self) -> dict[str, str]:
        """What the process needs in its environment."""
        return {
            "LD_PRELOAD": str(_LIBRARIES[0]),
            "FAKETIME_TIMESTAMP_FILE": str(self._path),
            "FAKETIME_CACHE_DURATION": str(_REREAD_S),
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }

    def step(self, offset_s: int) -> None:
        """Sets the clock to the true time plus an offset; seen within a second or so."""
        self._path.write_text(f"{offset_s:+d}\n")
