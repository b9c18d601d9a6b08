"""Runs a module with a low weight: `python -m bench.disagg.aside MODULE [ARGUMENT ...]`.

Where the kernel shares the cores out by session first (autogroup), the weight of a process inside
its session alone would change nothing: then the session's is lowered too.
"""

import os
import runpy
import sys
from contextlib import suppress
from pathlib import Path

NICE = 10
"""About a tenth of a worker's weight."""


def stand_aside() -> None:
    """Lowers the weight of this process and of its session."""
    os.nice(NICE)
    with suppress(OSError):
        Path("/proc/self/autogroup").write_text(str(NICE))


if __name__ == "__main__":
    stand_aside()
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
