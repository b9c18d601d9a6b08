"""Adjacent blocks as one copy: block for block lists become runs of blocks."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple


class Run(NamedTuple):
    """`length` blocks from `source` on go to `length` blocks from `target` on."""

    source: int
    target: int
    length: int


def runs(sources: Sequence[int], targets: Sequence[int]) -> Iterator[Run]:
    """Yields the fewest runs that copy each source block to the target block of its position.

    Order does not matter between blocks of one transfer, so blocks that two pools gave out in
    descending order are one run too.
    """
    start: tuple[int, int] | None = None
    count = 0
    for target, source in sorted(zip(targets, sources, strict=True)):
        if start is not None and (source, target) == (start[0] + count, start[1] + count):
            count += 1
            continue
        if start is not None:
            yield Run(*start, count)
        start, count = (source, target), 1
    if start is not None:
        yield Run(*start, count)
