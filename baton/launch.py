"""Becomes another program that the kernel kills when the process that started it dies.

    python -I -S launch.py PARENT_PID PROGRAM ARGUMENT...

The wish is PR_SET_PDEATHSIG with SIGKILL: it survives exec, needs no help from the program and
works when the parent itself was killed with SIGKILL. It is a wish of the process, so it cannot be
set from the parent without running Python between fork and exec, which is unsafe beside gRPC's
threads: hence this small program. The kernel watches the thread that forked, so start children
from a thread that lives as long as they should. Systems other than Linux have no such wish; there
a killed parent leaves its children behind.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def command(*program: str) -> list[str]:
    """Returns how this process starts `program` (a path and its arguments) as such a child."""
    return [sys.executable, "-I", "-S", __file__, str(os.getpid()), *program]


def main() -> None:
    """Reads its own arguments, asks the kernel, and becomes the program."""
    parent, program = int(sys.argv[1]), sys.argv[2:]
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit("launch: the parent died before its child began")
    os.execv(program[0], program)  # noqa: S606 - becoming the given program is its purpose


if __name__ == "__main__":
    main()
