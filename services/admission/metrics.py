"""What admission counts: verdicts, degradations, waits, and the loads it decides by."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from baton.errors import BatonError
from baton.telemetry import names
from baton.telemetry.providers import Telemetry
from services.admission.desk import PermitDesk
from services.admission.ladder import UNDEGRADED, Degradation
from services.admission.policy import PermitRequest

GRANTED = "granted"
QUEUED = "queued"


@dataclass(slots=True)
class Asked:
    """One request for a permit, filled in as it goes."""

    asked_s: float
    verdict: str = GRANTED
    degradation: Degradation = field(default=UNDEGRADED)


class AdmissionCounters:
    """Admission's meters. Attributes are few and bounded: classes and reasons, never tenants."""

    def __init__(self, telemetry: Telemetry, desk: PermitDesk) -> None:
        self._desk = desk
        self._verdicts = telemetry.counter(names.ADMISSION_VERDICTS)
        self._degradations = telemetry.counter(names.ADMISSION_DEGRADATIONS)
        self._waits = telemetry.histogram(names.ADMISSION_WAIT)
        telemetry.gauge(names.ADMISSION_PERMITS, self._permits)
        telemetry.gauge(names.ADMISSION_QUEUED, self._queued)

    @contextmanager
    def asking(self, request: PermitRequest) -> Iterator[Asked]:
        """Counts how asking for a permit ended: granted, queued before that, or a reason."""
        asked = Asked(time.monotonic())
        label = {names.ATTR_PRIORITY: request.priority.name.lower()}
        try:
            yield asked
        except BatonError as error:
            self._verdicts.add(1, {**label, names.ATTR_ADMISSION_VERDICT: error.reason})
            raise
        self._verdicts.add(1, {**label, names.ATTR_ADMISSION_VERDICT: asked.verdict})
        self._waits.record(time.monotonic() - asked.asked_s, label)
        for step in asked.degradation.names:
            self._degradations.add(1, {**label, names.ATTR_DEGRADATION: step})

    def _permits(self) -> Iterator[tuple[float, dict[str, str]]]:
        load = self._desk.load
        yield load.prefill_permits, {names.ATTR_STAGE: "prefill"}
        yield load.decode_permits, {names.ATTR_STAGE: "decode"}

    def _queued(self) -> Iterator[tuple[float, dict[str, str]]]:
        for priority, length in self._desk.door.queue_lengths().items():
            yield length, {names.ATTR_PRIORITY: priority.name.lower()}
