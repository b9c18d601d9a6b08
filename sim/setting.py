"""What every question to the simulator says, whatever it asks."""

from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from baton.config import Config
from sim.costs.hardware import Hardware
from sim.costs.presets import hardware
from sim.experiment import LimitedTrace
from sim.results.recorder import Slo
from sim.traces.arrivals import Arrivals
from sim.traces.find import find
from sim.workload import Trace


@dataclass(frozen=True, slots=True)
class Setting:
    """Workload, hardware and limits, and where results go. `requests` of None takes them all."""

    trace: str
    hardware: str
    slo: Slo
    config: Config
    seeds: int = 3
    requests: int | None = None
    arrivals: Arrivals | None = None
    kv_tokens: int | None = None
    json_file: Path | None = None
    plot_folder: Path | None = None

    @property
    def seed_range(self) -> range:
        """The seeds themselves."""
        return range(1, self.seeds + 1)

    def workload(self, console: Console) -> Trace:
        """Returns the trace and prints what is to be known about it. Raises TraceError."""
        found = find(self.trace, self.arrivals)
        if found.note:
            console.print(f"note: {found.note}")
        if self.requests is None:
            return found.trace
        return LimitedTrace(found.trace, self.requests)

    def machine(self, console: Console) -> Hardware:
        """Returns the hardware; prints its source and error. Raises UnknownHardwareError."""
        machine = hardware(self.hardware)
        console.print(machine.describe(), soft_wrap=True)
        return machine


def promising(config: Config, slo: Slo) -> Config:
    """Returns the configuration with the mesh promising what the run is judged by."""
    qos = config.qos.model_copy(
        update={"ttft_slo_ms": slo.ttft_s * 1e3, "tpot_slo_ms": slo.tpot_s * 1e3}
    )
    return config.model_copy(update={"qos": qos})


def progress_bar(console: Console) -> Progress:
    """Returns a bar that is gone afterwards; on what is no terminal nothing is drawn."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
    )
