"""What rounds did, one line of JSON each, so that a campaign can be stopped and continued."""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.chaos.traffic import Ending

_SLOWEST = 10
_TUPLES = ("faults", "victims", "broken")


@dataclass(frozen=True, slots=True)
class Round:
    """One round: the plan that `seed` and `number` make, on the code of `commit`.

    `waited_for` is what the mesh lacked last before it was whole again. `leaked` counts what was
    still held long after the last request; `broken` has a line for each promise not kept.
    `starved` is the part of the time that processes waited for a core while they wanted one.
    """

    seed: int
    number: int
    commit: str
    faults: tuple[str, ...]
    victims: tuple[str, ...]
    endings: dict[str, int]
    typed_errors: dict[str, int]
    recovery_s: float
    took_s: float
    leaked: dict[str, int]
    broken: tuple[str, ...]
    waited_for: str = ""
    routers: int = 1
    starved: float | None = None


@dataclass(frozen=True, slots=True)
class Report:
    """All rounds together."""

    rounds: Sequence[Round]

    def figures(self) -> dict[str, float | int | None]:
        """Returns the figures under their published names."""
        ordered = sorted(it.recovery_s for it in self.rounds)
        p99_s = ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))] if ordered else None
        endings, leaked = self.endings(), _summed(it.leaked for it in self.rounds)
        return {
            "rounds": len(self.rounds),
            "faults": sum(self.faults().values()),
            "requests": sum(endings.values()),
            "wrong_tokens": endings[Ending.WRONG.value],
            "lost_requests": endings[Ending.LOST.value],
            "leaked_blocks": leaked["blocks"],
            "leaked_permits": leaked["permits"],
            "leaked_credits": leaked["credits"],
            "recovery_p99_s": None if p99_s is None else round(p99_s, 3),
        }

    def faults(self) -> Counter[str]:
        """Returns how often each fault was injected."""
        return Counter(fault for it in self.rounds for fault in it.faults)

    def endings(self) -> Counter[str]:
        """Returns how often requests ended in each way."""
        return _summed(it.endings for it in self.rounds)

    def broken(self) -> list[str]:
        """Returns a line for each promise that was not kept, with the round that shows it."""
        return [
            f"seed {it.seed} round {it.number + 1} (starved {it.starved}): {line}"
            for it in self.rounds
            for line in it.broken
        ]

    def details(self) -> dict[str, object]:
        """Returns what is kept beside the figures."""
        segments = Counter((it.seed, it.routers, it.commit) for it in self.rounds)
        slowest = sorted(self.rounds, key=lambda it: it.recovery_s)[-_SLOWEST:]
        return {
            "segments": [
                {"seed": seed, "routers": routers, "commit": commit, "rounds": count}
                for (seed, routers, commit), count in segments.items()
            ],
            "slowest": [
                {
                    "faults": [*map(" of ".join, zip(it.faults, it.victims, strict=True))],
                    "recovery_s": it.recovery_s,
                    "waited_for": it.waited_for,
                    "starved": it.starved,
                }
                for it in slowest
            ],
            "faults": dict(sorted(self.faults().items())),
            "endings": dict(self.endings()),
            "typed_errors": dict(_summed(it.typed_errors for it in self.rounds)),
            "broken": self.broken(),
        }


def read_rounds(path: Path) -> list[Round]:
    """Returns the rounds that a file holds; none when it is not there."""
    if not path.exists():
        return []
    return [_read(line) for line in path.read_text().splitlines()]


def append_round(path: Path, done: Round) -> None:
    """Adds a round to a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps(asdict(done)) + "\n")


def _read(line: str) -> Round:
    fields = json.loads(line)
    return Round(**{**fields, **{name: tuple(fields[name]) for name in _TUPLES}})


def _summed(counts: Iterable[dict[str, int]]) -> Counter[str]:
    total: Counter[str] = Counter()
    for each in counts:
        total.update(each)
    return total
