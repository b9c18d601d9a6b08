"""How often the garbage collector looks."""

import gc


def quieten_collector() -> None:
    """Keeps what was imported out of garbage collection, which then runs less often.

    For a process that makes many objects and few cycles: services, load generators, simulations.
    Without this the collector took about a tenth of a busy router.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)
