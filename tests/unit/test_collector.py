"""The collector of a service: small looks instead of long ones, and nothing missed for good."""

import asyncio
import gc
import weakref
from collections.abc import Iterator

import pytest

from baton import collector
from baton.state.background import running
from tests.support.waiting import eventually


class Node:
    """Something that can refer to itself."""

    me: "Node | None" = None


@pytest.fixture(autouse=True)
def quick_and_as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = gc.get_threshold()
    monkeypatch.setattr(collector, "_STEP_S", 0.01)
    yield
    gc.unfreeze()
    gc.set_threshold(*before)


async def test_cycle_is_freed_at_the_next_look() -> None:
    async with running(collector.collect_in_steps()):
        node = Node()
        node.me = node
        seen = weakref.ref(node)
        del node
        await eventually(lambda: seen() is None)


async def test_what_is_needed_is_looked_at_once_and_freed_when_it_no_longer_is() -> None:
    async with running(collector.collect_in_steps()):
        node = Node()
        seen = weakref.ref(node)
        await eventually(lambda: not any(it is seen() for it in gc.get_objects()))
        del node
        assert seen() is None


async def test_cycle_that_lived_long_is_freed_once_the_process_has_grown_much(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with running(collector.collect_in_steps()):
        node = Node()
        node.me = node
        seen = weakref.ref(node)
        await eventually(lambda: not any(it is seen() for it in gc.get_objects()))
        del node
        await asyncio.sleep(0.05)
        assert seen() is not None
        monkeypatch.setattr(collector, "_peak_bytes", lambda: 1 << 50)
        await eventually(lambda: seen() is None)
