"""How promises are kept, as metrics: attainment, burn rates, and requests without a permit."""

import time
from collections.abc import Iterator

from baton.telemetry import names
from baton.telemetry.providers import Telemetry
from services.router.permits import PermitClient
from services.router.slo import Attainment, SloTracker

_SHARES = ("ttft", "tpot", "both")


def watch_promises(telemetry: Telemetry, slo: SloTracker, permits: PermitClient) -> None:
    """Observes them at each export. Tenants are told apart only where they are configured."""

    def attainment() -> Iterator[tuple[float, dict[str, str]]]:
        for found in slo.attainments(time.monotonic()):
            for target in _SHARES:
                yield getattr(found, target), {**_labels(found), names.ATTR_TARGET: target}

    def burn_rate() -> Iterator[tuple[float, dict[str, str]]]:
        for found in slo.attainments(time.monotonic()):
            yield found.burn_rate, _labels(found)

    def bypassed() -> Iterator[tuple[float, dict[str, str]]]:
        for verdict, counts in (("open", permits.failed_open), ("closed", permits.failed_closed)):
            for priority, count in counts.items():
                label = {names.ATTR_PRIORITY: priority.name.lower()}
                yield count, {**label, names.ATTR_ADMISSION_VERDICT: f"fail_{verdict}"}

    telemetry.gauge(names.SLO_ATTAINMENT, attainment)
    telemetry.gauge(names.SLO_BURN_RATE, burn_rate)
    telemetry.gauge(names.WITHOUT_PERMIT, bypassed)


def _labels(found: Attainment) -> dict[str, str]:
    return {
        names.ATTR_PRIORITY: found.priority.name.lower(),
        names.ATTR_TENANT: found.tenant,
        names.ATTR_WINDOW: found.window,
    }
