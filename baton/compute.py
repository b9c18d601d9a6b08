"""How one worker computes: flags of its process, since they differ from worker to worker."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import typer
import yaml

from baton.errors import StartupError

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


EngineArguments = Annotated[
    list[str] | None,
    typer.Option(
        "--engine-argument",
        metavar="NAME=VALUE",
        help="One more argument of an SGLang engine, over engine.sglang; may be repeated.",
    ),
]
Aggregated = Annotated[
    bool,
    typer.Option(
        "--aggregated", help="A decode worker on SGLang that computes its prompts itself."
    ),
]


@dataclass(frozen=True, slots=True)
class ComputeOptions:
    """Where and how a worker computes; a `token_budget` of None lets the engine choose."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    token_budget: int | None = None
    engine_argument: tuple[str, ...] = ()
    aggregated: bool = False

    def engine_arguments(self) -> dict[str, Any]:
        """Returns the extra arguments by name; values are read as YAML. Raises StartupError."""
        found: dict[str, Any] = {}
        for word in self.engine_argument:
            name, equals, value = word.partition("=")
            if not (name and equals):
                raise StartupError(f"--engine-argument {word}: write NAME=VALUE")
            found[name] = yaml.safe_load(value)
        return found

    def arguments(self) -> list[str]:
        """Returns the flags that give a worker's process these options; none for defaults."""
        words: list[str] = []
        if self.device != "auto":
            words += ["--device", self.device]
        if self.dtype != "auto":
            words += ["--dtype", self.dtype]
        if self.token_budget is not None:
            words += ["--token-budget", str(self.token_budget)]
        for word in self.engine_argument:
            words += ["--engine-argument", word]
        if self.aggregated:
            words.append("--aggregated")
        return words
