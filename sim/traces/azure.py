"""CSV traces: Azure's with timestamps, and plain lists of lengths with made-up arrivals."""

import csv
import random
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from sim.traces.arrivals import Arrivals
from sim.traces.errors import TraceError
from sim.workload import SimRequest

BLOCK_TOKENS = 64
"""Nothing is shared between these prompts, so blocks only count memory."""

_PROMPT_COLUMNS = ("ContextTokens", "input_length", "prompt_tokens", "input_tokens")
_OUTPUT_COLUMNS = ("GeneratedTokens", "output_length", "output_tokens")
_TIME_COLUMN = "TIMESTAMP"


@dataclass(frozen=True, slots=True)
class CsvTrace:
    """A CSV with a header: prompt and output lengths, and Azure's TIMESTAMP where it has one.

    With `arrivals` the timestamps are ignored and requests come as that says; a file without
    timestamps needs it.
    """

    path: Path
    arrivals: Arrivals | None = None
    block_tokens: int = BLOCK_TOKENS

    @property
    def name(self) -> str:
        """The file's name."""
        return self.path.stem

    def requests(self, seed: int, rate: float = 1.0) -> Iterator[SimRequest]:
        """See `Trace`. Raises TraceError at a row that is not in the schema."""
        rng = random.Random(seed)  # noqa: S311 - not for secrets
        times = self.arrivals.times(rng) if self.arrivals else None
        start: datetime | None = None
        for number, row in self._rows():
            try:
                if times is not None:
                    arrival_s = next(times)
                else:
                    stamp = _timestamp(row[_TIME_COLUMN] or "")
                    start = start or stamp
                    arrival_s = (stamp - start).total_seconds()
                prompt, output = _number(row, _PROMPT_COLUMNS), _number(row, _OUTPUT_COLUMNS)
            except (KeyError, TypeError, ValueError) as error:
                raise TraceError(f"{self.path}:{number}: not a trace's row: {error}") from error
            yield SimRequest(arrival_s / rate, prompt, output)

    def _rows(self) -> Iterator[tuple[int, dict[str, str]]]:
        try:
            with self.path.open(encoding="utf-8", newline="") as lines:
                yield from enumerate(csv.DictReader(lines), 2)
        except (csv.Error, UnicodeDecodeError) as error:
            raise TraceError(f"{self.path}: not a CSV file in UTF-8: {error}") from error


def _number(row: dict[str, str], columns: tuple[str, ...]) -> int:
    for column in columns:
        if column in row:
            return max(1, int(row[column]))
    raise KeyError(f"none of the columns {', '.join(columns)}")


def _timestamp(text: str) -> datetime:
    # Azure writes seven digits of a second, one more than datetime reads.
    whole, _, fraction = text.partition(".")
    return datetime.fromisoformat(f"{whole}.{fraction[:6].ljust(6, '0')}+00:00")
