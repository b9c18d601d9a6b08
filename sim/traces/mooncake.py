"""Mooncake's traces: JSON lines with arrival, lengths and the prompt's block hashes."""

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import groupby, islice
from pathlib import Path

from pydantic import FiniteFloat, NonNegativeInt, TypeAdapter, ValidationError

from sim.traces.errors import TraceError
from sim.workload import SimRequest

BLOCK_TOKENS = 512
TICK_S = 3.0
"""Timestamps are rounded down to this; without jitter each tick would be one burst."""

_OFF_TICK_MS = 5.0
"""The public traces are off their ticks by up to 3 ms."""

_LOOKED_AT = 64


@dataclass(frozen=True, slots=True)
class _Row:
    timestamp: FiniteFloat
    input_length: NonNegativeInt
    output_length: NonNegativeInt
    hash_ids: list[int] = field(default_factory=list)


_ROW = TypeAdapter(_Row)


@dataclass(frozen=True, slots=True)
class MooncakeTrace:
    """A file in Mooncake's schema: timestamp (ms), input_length, output_length, hash_ids.

    Where all times are rounded to ticks, requests of one tick are spread over `jitter_s`, in an
    order that the seed decides. Exact times, as `baton record` writes them, are kept.
    """

    path: Path
    jitter_s: float = TICK_S
    block_tokens: int = BLOCK_TOKENS

    @property
    def name(self) -> str:
        """The file's name."""
        return f"mooncake/{self.path.stem}"

    def requests(self, seed: int, rate: float = 1.0) -> Iterator[SimRequest]:
        """See `Trace`. Raises TraceError at a line that is not in the schema."""
        rng = random.Random(seed)  # noqa: S311 - not for secrets
        jitter_s = self.jitter_s if self._is_rounded() else 0.0
        arrival_s = _tick_s if jitter_s else _exact_s
        for began_s, rows in groupby(self._rows(), key=arrival_s):
            spread = [(began_s + rng.random() * jitter_s, row) for row in rows]
            spread.sort(key=lambda entry: entry[0])
            for time_s, row in spread:
                yield self._request(time_s / rate, row)

    def _is_rounded(self) -> bool:
        first = islice(self._rows(), _LOOKED_AT)
        return all(abs(row.timestamp / 1e3 - _tick_s(row)) <= _OFF_TICK_MS / 1e3 for row in first)

    def _rows(self) -> Iterator[_Row]:
        with self.path.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                yield self._row(number, line)

    def _row(self, number: int, line: bytes) -> _Row:
        try:
            return _ROW.validate_json(line)
        except ValidationError as error:
            problem = error.errors()[0]
            where = ".".join(map(str, problem["loc"]))
            raise TraceError(
                f"{self.path}:{number}: not a line of Mooncake's schema: "
                f"{where + ': ' if where else ''}{problem['msg']}"
            ) from error

    def _request(self, arrival_s: float, row: _Row) -> SimRequest:
        tokens = max(1, row.input_length)
        full_blocks = tokens // self.block_tokens
        return SimRequest(
            arrival_s=arrival_s,
            prompt_tokens=tokens,
            output_tokens=max(1, row.output_length),
            hashes=tuple(row.hash_ids[:full_blocks]),
        )


def _exact_s(row: _Row) -> float:
    return row.timestamp / 1e3


def _tick_s(row: _Row) -> float:
    """Returns the nearest tick."""
    return round(row.timestamp / 1e3 / TICK_S) * TICK_S
