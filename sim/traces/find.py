"""Workloads by name or file."""

import csv
from dataclasses import dataclass
from pathlib import Path

from sim.datasets import VARIABLE, dataset
from sim.traces.arrivals import Arrivals
from sim.traces.azure import CsvTrace
from sim.traces.errors import TraceError
from sim.traces.mooncake import MooncakeTrace
from sim.traces.synthetic import ConversationTrace, MixTrace
from sim.workload import Trace

_FILES = {
    "conversation": "mooncake/conversation_trace.jsonl",
    "azure-code": "azure/AzureLLMInferenceTrace_code.csv",
}
_GENERATED = {"mix": MixTrace, "generated": ConversationTrace}


@dataclass(frozen=True, slots=True)
class Found:
    """A workload, and what its user should know about where it is from."""

    trace: Trace
    note: str = ""


def names() -> list[str]:
    """Returns the workloads that have a name."""
    return [*_FILES, *_GENERATED]


def find(name: str, arrivals: Arrivals | None = None) -> Found:
    """Returns a workload by name, or reads a file by its ending: .jsonl or .csv.

    A named recording that is not on this machine is replaced by a generated one, with a note.
    Raises TraceError when there is no such file, or it needs `arrivals`.
    """
    if name in _GENERATED:
        return Found(_generated(name, arrivals))
    if name in _FILES:
        path = dataset(_FILES[name])
        if path is None:
            stand_in = ConversationTrace()
            return Found(
                stand_in,
                f"{_FILES[name]} is not on this machine (set {VARIABLE} to the traces' folder); "
                f"using {stand_in.name} instead",
            )
        return Found(_read(path, arrivals))
    path = Path(name)
    if not path.is_file():
        raise TraceError(f"{name}: no such file, nor one of {', '.join(names())}")
    return Found(_read(path, arrivals))


def _generated(name: str, arrivals: Arrivals | None) -> Trace:
    if name == "mix":
        return MixTrace() if arrivals is None else MixTrace(arrivals=arrivals)
    return ConversationTrace()


def _read(path: Path, arrivals: Arrivals | None) -> Trace:
    if path.suffix == ".jsonl":
        return MooncakeTrace(path)
    if path.suffix != ".csv":
        raise TraceError(f"{path}: a trace ends in .jsonl (Mooncake's schema) or .csv")
    with path.open(encoding="utf-8", newline="") as lines:
        columns = next(csv.reader(lines), [])
    if "TIMESTAMP" not in columns and arrivals is None:
        raise TraceError(f"{path}: has no TIMESTAMP column, so say how requests arrive")
    return CsvTrace(path, arrivals)
