"""How often the garbage collector looks, and at what."""

import asyncio
import gc
import itertools

_ALLOCATIONS = 50_000
_STEP_S = 0.1
_STEPS_TO_COUNT = 300
_MOST_MORE_OBJECTS = 500_000


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
    is looked at again when far more is held than after the last time.
    """
    gc.set_threshold(_ALLOCATIONS, 1_000_000, 1_000_000)  # the later generations are not used
    held = gc.get_freeze_count()
    for step in itertools.count(1):
        await asyncio.sleep(_STEP_S)
        gc.collect(0)
        gc.freeze()
        if not step % _STEPS_TO_COUNT and gc.get_freeze_count() > 2 * held + _MOST_MORE_OBJECTS:
            gc.unfreeze()
            gc.collect()
            gc.freeze()
            held = gc.get_freeze_count()
