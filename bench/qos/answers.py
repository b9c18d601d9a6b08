"""What clients of a mesh saw under one load, summed up by class."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from baton.requests import Priority


@dataclass(frozen=True, slots=True)
class Answered:
    """One request's end. `ttft_s` is None where nothing came, and `reason` says why."""

    priority: Priority
    prompt_tokens: int
    ttft_s: float | None = None
    tpot_s: float | None = None
    reason: str = ""
    is_rejected: bool = False
    degradations: tuple[str, ...] = ()

    def meets(self, ttft_slo_s: float, tpot_slo_s: float) -> bool:
        """Tells whether it was served within both targets."""
        if self.ttft_s is None or self.reason:
            return False
        return self.ttft_s <= ttft_slo_s and (self.tpot_s or 0.0) <= tpot_slo_s


@dataclass(frozen=True, slots=True)
class ClassShare:
    """One class: how many, which share met both targets, and the median TTFT of those served."""

    offered: int
    rejected: float
    attainment: float
    ttft_p50_s: float | None


@dataclass(frozen=True, slots=True)
class LoadFigures:
    """One load. `rejected` and `goodput` are shares of all that were offered.

    Wasted tokens are the prompts of those who were accepted and missed a target.
    """

    offered: int
    rejected: float
    goodput: float
    wasted_tokens: int
    wasted_share: float
    classes: Mapping[Priority, ClassShare]
    reasons: Mapping[str, int]
    degradations: Mapping[str, int]

    def line(self) -> str:
        """Returns it in a line."""
        classes = "  ".join(
            f"{priority.name.lower()} {it.attainment:.3f} {it.ttft_p50_s or 0:.2f} s"
            for priority, it in self.classes.items()
        )
        return (
            f"rejected {self.rejected:.3f} goodput {self.goodput:.3f} "
            f"wasted {self.wasted_share:.3f}  {classes}  {dict(self.reasons)}"
        )

    def details(self) -> dict[str, Any]:
        """Returns it for a result file."""
        classes = {priority.name.lower(): asdict(it) for priority, it in self.classes.items()}
        names = ("offered", "rejected", "goodput", "wasted_tokens", "wasted_share")
        return {
            **{name: getattr(self, name) for name in names},
            "classes": classes,
            "reasons": dict(self.reasons),
            "degradations": dict(self.degradations),
        }


def figures_of(answers: Sequence[Answered], ttft_slo_s: float, tpot_slo_s: float) -> LoadFigures:
    """Sums up what became of all requests of one load."""
    met = [it.meets(ttft_slo_s, tpot_slo_s) for it in answers]
    accepted = sum(it.prompt_tokens for it in answers if not it.is_rejected)
    wasted = sum(
        it.prompt_tokens
        for it, is_met in zip(answers, met, strict=True)
        if not it.is_rejected and not is_met
    )
    return LoadFigures(
        offered=len(answers),
        rejected=sum(it.is_rejected for it in answers) / max(1, len(answers)),
        goodput=sum(met) / max(1, len(answers)),
        wasted_tokens=wasted,
        wasted_share=wasted / max(1, accepted),
        classes={
            priority: _class_share(
                [it for it in answers if it.priority is priority], ttft_slo_s, tpot_slo_s
            )
            for priority in sorted(Priority, reverse=True)
        },
        reasons=Counter(it.reason for it in answers if it.reason),
        degradations=Counter(name for it in answers for name in it.degradations),
    )


def _class_share(answers: Sequence[Answered], ttft_slo_s: float, tpot_slo_s: float) -> ClassShare:
    offered = max(1, len(answers))
    served = [it.ttft_s for it in answers if it.ttft_s is not None]
    return ClassShare(
        offered=len(answers),
        rejected=sum(it.is_rejected for it in answers) / offered,
        attainment=sum(it.meets(ttft_slo_s, tpot_slo_s) for it in answers) / offered,
        ttft_p50_s=median(served) if served else None,
    )


def show(found: Mapping[str, Mapping[float, LoadFigures]]) -> None:
    """Prints the table, by load."""
    table = Table(box=None)
    heads = ("load", "policy", "offered", "rejected", "goodput", "wasted", "tokens wasted")
    for head in (*heads, "high", "normal", "low", "TTFT high", "normal", "low"):
        table.add_column(head, justify="right")
    for load in next(iter(found.values())):
        for policy, loads in found.items():
            table.add_row(f"{load:g}x", policy, *_cells(loads[load]))
    console = Console()
    console.width = max(console.width, 150)
    console.print(table)


def _cells(it: LoadFigures) -> list[str]:
    shares = [f"{100 * share:.1f} %" for share in (it.rejected, it.goodput, it.wasted_share)]
    classes = it.classes.values()
    met = [f"{100 * each.attainment:.1f} %" for each in classes]
    ttft = ["-" if each.ttft_p50_s is None else f"{each.ttft_p50_s:.2f} s" for each in classes]
    return [str(it.offered), *shares, str(it.wasted_tokens), *met, *ttft]
