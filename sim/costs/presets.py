"""Hardware by name: what was measured in public, and what other projects assume."""

from pathlib import Path

from baton.latency import PREFILL_DEFAULTS, STEP_DEFAULTS
from sim.costs import distserve, splitwise
from sim.costs.hardware import Hardware, load
from sim.costs.model import StepCosts
from sim.datasets import VARIABLE, dataset

ALIASES = {
    "a100": "splitwise:llama2-70b:a100-80gb:8",
    "h100": "splitwise:llama2-70b:h100-80gb:8",
    "opt-13b": "distserve:opt-13b:distserve:1",
    "opt-66b": "distserve:opt-66b:distserve:4",
}

SMG = Hardware(
    name="smg-mock",
    source="the constants of SMG's mock worker: 8,000 tokens/s prefill, 6 ms + 0.35 ms per request",
    costs=StepCosts((0.0, 1 / 8000, 0.0), (6e-3, 3.5e-4, 0.0)),
    kv_tokens=524_288,
    kv_bytes_per_token=131_072,
    note="assumed there, not measured",
)

BATON_DEFAULTS = Hardware(
    name="baton-defaults",
    source="the defaults of baton.latency, before any sample",
    costs=StepCosts(PREFILL_DEFAULTS, STEP_DEFAULTS),
    kv_tokens=65_536,
    kv_bytes_per_token=2_048,
    note="a small model on CPU",
)

H100_COPY = Hardware(
    name="h100-copy",
    source="the fit of `h100` (Splitwise's table, llama2-70b on 8 H100), two digits kept",
    costs=StepCosts((2.7e-2, 6.1e-5, 6.6e-10), (3.0e-2, 2.9e-4, 2.4e-8)),
    kv_tokens=1_300_000,
    kv_bytes_per_token=327_680,
    gpus=8,
    note="for machines without the table",
)

_BUILT_IN = {hardware.name: hardware for hardware in (SMG, BATON_DEFAULTS, H100_COPY)}


class UnknownHardwareError(Exception):
    """No such preset, or its measurements are not on this machine."""


def names() -> list[str]:
    """Returns the short names."""
    return [*ALIASES, *_BUILT_IN]


def hardware(name: str) -> Hardware:
    """Returns a preset by short or full name, or from a file. Raises UnknownHardwareError."""
    if name in _BUILT_IN:
        return _BUILT_IN[name]
    if name.endswith(".json"):
        return _saved(Path(name))
    parts = ALIASES.get(name, name).split(":")
    try:
        match parts:
            case ["splitwise", model, machine, gpus]:
                path = _measured("splitwise-sim/perf_model.csv")
                return splitwise.read(path, model, machine, int(gpus))
            case ["distserve", model, engine, gpus]:
                path = _measured(f"distserve/profiler-a100-80g.{engine}.json")
                return distserve.read(path, model, int(gpus))
    except (LookupError, ValueError) as error:
        raise UnknownHardwareError(f"{name}: {error}") from error
    raise UnknownHardwareError(f"no hardware {name!r}; known are {', '.join(names())}")


def _saved(path: Path) -> Hardware:
    try:
        return load(path)
    except (OSError, ValueError) as error:
        raise UnknownHardwareError(f"{path}: {error}") from error


def _measured(name: str) -> Path:
    path = dataset(name)
    if path is None:
        raise UnknownHardwareError(
            f"{name} is not on this machine: set {VARIABLE} to the traces' folder, or take one of "
            f"{', '.join(_BUILT_IN)}"
        )
    return path
