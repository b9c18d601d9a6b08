"""How one worker computes: flags of its process, since they differ from worker to worker."""

from dataclasses import dataclass
from typing import Annotated, Literal

import typer

Device = Annotated[
    Literal["auto", "cpu", "cuda"],
    typer.Option("--device", help="Where workers compute; auto takes a GPU when there is one."),
]
Dtype = Annotated[
    Literal["auto", "float32", "bfloat16"],
    typer.Option("--dtype", help="Number format; auto is float32 on CPU and bfloat16 on a GPU."),
]
TokenBudget = Annotated[
    int | None,
    typer.Option(
        "--token-budget", min=16, help="Most tokens per engine step; else the engine chooses."
    ),
]


@dataclass(frozen=True, slots=True)
class ComputeOptions:
    """Where and how a worker computes; a `token_budget` of None lets the engine choose."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    token_budget: int | None = None

    def arguments(self) -> list[str]:
        """Returns the flags that give a worker's process these options; none for defaults."""
        words: list[str] = []
        if self.device != "auto":
            words += ["--device", self.device]
        if self.dtype != "auto":
            words += ["--dtype", self.dtype]
        if self.token_budget is not None:
            words += ["--token-budget", str(self.token_budget)]
        return words
