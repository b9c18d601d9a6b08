"""A kind of worker: its costs, its memory, and where the figures are from."""

from dataclasses import dataclass

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
