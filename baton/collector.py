"""How often the garbage collector looks, and at what."""

import asyncio
import gc
import resource
import sys

_ALLOCATIONS = 50_000
_STEP_S = 0.1
_MOST_GROWTH = 2.0
_LEAST_GROWTH_BYTES = 512 * 2**20
_PEAK_UNIT_BYTES = 1 if sys.platform == "darwin" else 1024


def quieten_collector() -> None:
    """Keeps what was imported out of garbage collection, which then runs less often.

    For a process that makes many objects and few cycles: services, load generators, simulations.
    Without this the collector took about a tenth of a busy router.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_ALLOCATIONS, 20, 50)


async def collect_in_steps() -> None:
    """Looks at each object once, soon after it was made, until cancelled.

    The collector's own generations end in looks at all that a thousand streams hold, each of which
    stops the event loop for a tenth of a second. What is still needed after its look is set aside:
    it is freed as usual when nobody refers to it, but a cycle that lived so long is missed. So all
    is looked at when the process has become twice as large and more since the last time.
    """
    gc.set_threshold(_ALLOCATIONS, 1_000_000, 1_000_000)  # the later generations are not used
    looked_at_bytes = _peak_bytes()
    while True:
        await asyncio.sleep(_STEP_S)
        if _peak_bytes() > _MOST_GROWTH * looked_at_bytes + _LEAST_GROWTH_BYTES:
            gc.unfreeze()
            gc.collect()
            looked_at_bytes = _peak_bytes()
        else:
            gc.collect(0)
        gc.freeze()


def _peak_bytes() -> int:
    return _PEAK_UNIT_BYTES * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
