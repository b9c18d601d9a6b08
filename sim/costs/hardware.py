"""A kind of worker: its costs, its memory, and where the figures are from."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from sim.costs.model import StepCosts


@dataclass(frozen=True, slots=True)
class Hardware:
    """One worker: a model on one or more GPUs. Errors are mean relative ones, None if unknown."""

    name: str
    source: str
    costs: StepCosts
    kv_tokens: int
    kv_bytes_per_token: int
    gpus: int = 1
    prefill_error: float | None = None
    decode_error: float | None = None
    note: str = ""

    def describe(self) -> str:
        """Returns one line: what this is, its source and how well it fits."""
        errors = [
            f"{what} {'not published' if error is None else f'{100 * error:.1f} %'}"
            for what, error in (("prefill", self.prefill_error), ("decode", self.decode_error))
        ]
        text = f"{self.name}: {self.source}; mean fit error {', '.join(errors)}"
        return f"{text}; {self.note}" if self.note else text


def save(path: Path, made: Hardware) -> None:
    """Writes a preset for `--hardware FILE`."""
    path.write_text(json.dumps(asdict(made), indent=1) + "\n")


def load(path: Path) -> Hardware:
    """Reads a preset. Raises ValueError for a file that holds none."""
    try:
        values = json.loads(path.read_text())
        costs = values.pop("costs")
        return Hardware(
            costs=StepCosts(tuple(costs["prefill"]), tuple(costs["decode"])),
            **values,
        )
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} holds no hardware preset: {error}") from error
