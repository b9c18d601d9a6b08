"""Measures how long a process's event loop answers to nobody."""

import asyncio
import time

from baton.telemetry.names import LOOP_STALL
from baton.telemetry.providers import Telemetry

BEAT_S = 0.02
_WORTH_TELLING_S = 0.005


async def watch_loop(telemetry: Telemetry) -> None:
    """Records by how much each beat came late, until cancelled.

    What is late is everything else on the loop, or the machine, which had no core to spare.
    """
    stalls = telemetry.histogram(LOOP_STALL)
    while True:
        began_s = time.monotonic()
        await asyncio.sleep(BEAT_S)
        late_s = time.monotonic() - began_s - BEAT_S
        if late_s > _WORTH_TELLING_S:
            stalls.record(late_s)
