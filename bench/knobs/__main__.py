"""`make bench-knobs`: what each setting does, against its default, for docs/tuning.md.

The simulator answers for most; four settings of the KV pool and the cost of spans are measured in
a mesh on this machine.
"""

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from baton.config import knobs
from bench.knobs import mesh, simulated
from bench.knobs.effect import changes, words
from bench.knobs.probes import (
    CONVERSATION,
    DAY,
    MESH,
    OVERLOAD,
    PROBES,
    SPANS,
    TENANTS,
    WITHOUT_DEGREE,
    Probe,
    configured,
)
from bench.knobs.simulated import Figures
from bench.report import emit, note, steps

Settings = Mapping[str, object]

_SIMULATED = {
    CONVERSATION: simulated.conversation,
    OVERLOAD: simulated.overload,
    TENANTS: simulated.tenants,
    DAY: simulated.day,
}
_IN_MESH: dict[str, Callable[[Settings, int], list[Figures]]] = {
    MESH: mesh.again,
    SPANS: mesh.spans,
}


def main() -> None:
    """Measures, prints, and with --record keeps the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", default="", help="Settings whose path holds this text.")
    parser.add_argument("--record", action="store_true")
    given = parser.parse_args()
    probes = [probe for probe in PROBES if given.only in probe.knob]
    details = dict(measured(probes, given.seeds))
    details |= {name: {"text": why} for name, why in WITHOUT_DEGREE.items()}
    seen = sum(each.get("is_seen", False) for each in details.values())
    figures = {
        "seeds": float(given.seeds),
        "measured": float(len(probes)),
        "with_effect": float(seen),
        "without_degree": float(len(WITHOUT_DEGREE)),
    }
    emit("knobs", figures, details, given.record)


def measured(probes: Sequence[Probe], seeds: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields each setting and what was found. Equal configurations run once."""
    done: dict[str, list[Figures]] = {}

    def run(workload: str, settings: Settings) -> list[Figures]:
        key = f"{workload} {sorted(settings.items())}"
        if key not in done:
            done[key] = _run(workload, settings, seeds)
        return done[key]

    for probe in steps(probes, "settings"):
        found = effect_of(probe, run)
        note(f"{probe.knob}: {found['text']}")
        yield probe.knob, found


def effect_of(probe: Probe, run: Callable[[str, Settings], Sequence[Figures]]) -> dict[str, Any]:
    """Returns what `run` gives with each value, and in words what differs from the default."""
    defaults = {knob.path: knob.default for knob in knobs()}
    base = defaults[probe.knob] if probe.base is None else probe.base
    before = run(probe.workload, {**probe.given, probe.knob: base})
    runs = [{"value": base, "figures": before}]
    texts, is_seen = [], False
    for other in probe.others:
        after = run(probe.workload, {**probe.given, probe.knob: other})
        found = changes(before, after)
        texts.append(words(base, other, found))
        is_seen |= any(change.is_seen for change in found)
        runs.append({"value": other, "figures": after})
    return {
        "workload": probe.workload,
        "given": dict(probe.given),
        "runs": runs,
        "text": "; ".join(texts),
        "is_seen": is_seen,
    }


def _run(workload: str, settings: Settings, seeds: int) -> list[Figures]:
    if workload in _IN_MESH:
        return _IN_MESH[workload](settings, seeds)
    config = configured(settings)
    return [_SIMULATED[workload](config, seed) for seed in range(1, seeds + 1)]


if __name__ == "__main__":
    main()
