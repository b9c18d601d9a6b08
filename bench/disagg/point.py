"""What requests showed: as they came back, and summed up as a point of the comparison."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

from bench.disagg.work import Slo
from bench.drive import Outcome, percentiles_ms


class Seen(NamedTuple):
    """One judged request. Times in seconds; `error` is empty when it ended well."""

    ttft_s: float
    tpot_s: float | None
    tokens: int
    is_local: bool
    error: str

    @classmethod
    def of(cls, outcome: Outcome) -> "Seen":
        """Returns what is kept of an outcome."""
        tpot_s = None if outcome.tpot_s is None else round(outcome.tpot_s, 6)
        ttft_s = round(outcome.ttft_s, 6)
        return cls(ttft_s, tpot_s, outcome.tokens, outcome.is_local, outcome.error)

    def meets(self, slo: Slo) -> bool:
        """Tells whether it ended well within both targets."""
        return not self.error and self.ttft_s <= slo.ttft_s and (self.tpot_s or 0.0) <= slo.tpot_s


@dataclass(frozen=True, slots=True)
class Turn:
    """One run of one arm: the requests that arrived within `seconds`, and their targets.

    The answers of those that ended well took `answering_s`, from the first arrival to the last
    token.
    """

    seconds: float
    answering_s: float
    slo: Slo
    seen: tuple[Seen, ...]

    @classmethod
    def read(cls, values: dict[str, Any]) -> "Turn":
        """Returns the turn that `asdict` and JSON wrote."""
        seen = tuple(Seen(*it) for it in values["seen"])
        return cls(values["seconds"], values["answering_s"], Slo(**values["slo"]), seen)

    def looser(self, factor: float) -> "Turn":
        """Returns it to be judged by this many times the TPOT target."""
        return replace(self, slo=replace(self.slo, tpot_s=factor * self.slo.tpot_s))


@dataclass(frozen=True, slots=True)
class Point:
    """What one offered load showed. `attained` is the share that met both targets.

    `local_share` is that of the answered ones whose decode worker computed the prompt itself.
    """

    offered_per_s: float
    requests: int
    errors: dict[str, int]
    ttft_ms: dict[str, float]
    tpot_ms: dict[str, float]
    attained: float
    tokens_per_s: float
    local_share: float

    @classmethod
    def of(cls, turns: Sequence[Turn]) -> "Point":
        """Returns the point of all requests of some turns together."""
        seen = [it for turn in turns for it in turn.seen]
        well = [it for it in seen if not it.error]
        return cls(
            offered_per_s=len(seen) / sum(turn.seconds for turn in turns),
            requests=len(seen),
            errors=dict(Counter(it.error for it in seen if it.error)),
            ttft_ms=percentiles_ms([it.ttft_s for it in well]),
            tpot_ms=percentiles_ms([it.tpot_s for it in well if it.tpot_s is not None]),
            attained=sum(it.meets(turn.slo) for turn in turns for it in turn.seen)
            / max(1, len(seen)),
            tokens_per_s=sum(it.tokens for it in well)
            / max(1e-9, sum(turn.answering_s for turn in turns)),
            local_share=sum(it.is_local for it in well) / max(1, len(well)),
        )

    @property
    def goodput_per_s(self) -> float:
        """Requests per second within both targets; failed and refused ones are offered too."""
        return self.attained * self.offered_per_s

    def figures(self) -> dict[str, Any]:
        """Returns it for JSON."""
        return asdict(self)


def row(name: str, point: Point) -> str:
    """Returns a point as one line of the table."""
    cells: list[Any] = [f"{point.offered_per_s:9.2f}", f"{point.requests:5d}"]
    for values in (point.ttft_ms, point.tpot_ms):
        cells += [f"{values.get(key, float('nan')):8.1f}" for key in ("p50", "p99")]
    cells += [f"{100 * point.attained:5.0f}%", f"{point.tokens_per_s:8.0f}"]
    errors = f"  {point.errors}" if point.errors else ""
    return " ".join([f"{name:24}", *cells, f"{100 * point.local_share:4.0f}%"]) + errors


_COLUMNS = "offered/s, count, TTFT p50,   p99 ms, TPOT p50,   p99 ms, within, tokens/s, local"
HEAD = " ".join([f"{'':24}", *_COLUMNS.split(", ")])
