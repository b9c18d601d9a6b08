"""What can go wrong: each fault is injected, lasts and is healed."""

import asyncio
import random
import resource
import signal
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass

from baton.local.roles import Role
from baton.state.connect import REDIS_ERRORS
from tests.chaos.clock import CAN_STEP
from tests.chaos.fleet import Fleet, Member
from tests.chaos.hosts import Host
from tests.chaos.meddler import Meddling
from tests.chaos.proxy import Network

_LOG_LIMIT_BYTES = 1


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault of one round. `inject` breaks, `heal` mends; the round waits `lasts_s` between.

    `victims` are the names of the processes that are hit.
    """

    name: str
    victims: tuple[str, ...]
    lasts_s: float
    inject: Callable[[], Awaitable[None]]
    heal: Callable[[], Awaitable[None]]


Maker = Callable[[Fleet, random.Random], Fault]


def any_fault(fleet: Fleet, rng: random.Random) -> Fault:
    """Returns one fault, chosen and dimensioned by `rng`."""
    has_hosts = any(member.host for member in fleet.members.values())
    maker: Maker = rng.choice((*_MAKERS, *_MAKERS_OF_HOSTS) if has_hosts else _MAKERS)
    return maker(fleet, rng)


def killed(fleet: Fleet, rng: random.Random) -> Fault:
    """A process dies without a word and comes back on the same port."""
    member = _any_member(fleet, rng)
    return _signalled("kill -9", fleet, member, signal.SIGKILL, 0.0)


def stopped(fleet: Fleet, rng: random.Random) -> Fault:
    """A process stands still for a while and goes on as if nothing had happened."""
    member = _any_member(fleet, rng)
    return _signalled("SIGSTOP", fleet, member, signal.SIGSTOP, rng.uniform(0.3, 4.0))


def terminated(fleet: Fleet, rng: random.Random) -> Fault:
    """A process is asked to end, as at a rolling restart."""
    member = rng.choice([*fleet.of(Role.PREFILL), *fleet.of(Role.DECODE)])
    return _signalled("SIGTERM", fleet, member, signal.SIGTERM, 0.0)


def bad_network(fleet: Fleet, rng: random.Random) -> Fault:
    """The way to one process is cut, silent, slow or narrow."""
    member = _any_member(fleet, rng)
    network = rng.choice([it for it in Network if it is not Network.GOOD])
    proxy = fleet.proxies[member.name]

    async def inject() -> None:
        proxy.turn(network)

    async def heal() -> None:
        proxy.turn(Network.GOOD)

    return Fault(f"network {network.value}", (member.name,), rng.uniform(0.3, 4.0), inject, heal)


def forged_receipts(fleet: Fleet, rng: random.Random) -> Fault:
    """A prefill worker's receipts are forged, lost or arrive twice."""
    member = rng.choice(fleet.of(Role.PREFILL))
    meddler = fleet.meddlers[member.name]
    meddling = rng.choice([it for it in Meddling if it is not Meddling.NONE])

    async def inject() -> None:
        meddler.meddling = meddling

    async def heal() -> None:
        meddler.meddling = Meddling.NONE

    return Fault(f"receipts: {meddling.value}", (member.name,), rng.uniform(0.5, 2), inject, heal)


def forgotten_state(fleet: Fleet, rng: random.Random) -> Fault:
    """Redis loses everything that it knew."""

    async def inject() -> None:
        with suppress(*REDIS_ERRORS):  # the round's other fault may have killed it: it forgot then
            await fleet.redis.flushall()

    return Fault("FLUSHALL", ("redis",), 0.2, inject, _nothing)


def full_disk(fleet: Fleet, rng: random.Random) -> Fault:
    """A process can write no byte more to any file, its log included."""
    member = rng.choice([it for it in fleet.members.values() if it.role is not Role.REDIS])
    pid = member.pid

    async def inject() -> None:
        _limit(pid, resource.RLIMIT_FSIZE, _LOG_LIMIT_BYTES)

    async def heal() -> None:
        _limit(pid, resource.RLIMIT_FSIZE, resource.RLIM_INFINITY)

    return Fault("disk full", (member.name,), rng.uniform(0.5, 2.0), inject, heal)


def no_memory(fleet: Fleet, rng: random.Random) -> Fault:
    """A worker gets no byte of memory more; when it does not survive that, it starts again."""
    member = rng.choice([*fleet.of(Role.PREFILL), *fleet.of(Role.DECODE)])
    pid = member.pid

    async def inject() -> None:
        _limit(pid, resource.RLIMIT_AS, 1)

    async def heal() -> None:
        _limit(pid, resource.RLIMIT_AS, resource.RLIM_INFINITY)
        await fleet.wait_serving(member)

    return Fault("no memory", (member.name,), rng.uniform(0.2, 1.0), inject, heal)


def stepped_clock(fleet: Fleet, rng: random.Random) -> Fault:
    """A process's wall clock is set to another time, and set right again."""
    member = _any_member(fleet, rng)
    offset_s = rng.choice((-1, 1)) * rng.choice((2, 20, 3600))

    async def inject() -> None:
        if member.clock:
            member.clock.step(offset_s)

    async def heal() -> None:
        if member.clock:
            member.clock.step(0)

    name = f"clock {'ahead' if offset_s > 0 else 'behind'}"
    return Fault(name, (member.name,), rng.uniform(1.5, 4.0), inject, heal)


def cut_host(fleet: Fleet, rng: random.Random) -> Fault:
    """A worker's host loses its cable: calls, Redis and KV on their way stop at once."""
    member, host = _apart(fleet, rng)
    return Fault("host cut off", (member.name,), rng.uniform(0.3, 4.0), host.cut, host.join)


def narrow_host(fleet: Fleet, rng: random.Random) -> Fault:
    """Little gets through to a worker's host, KV included."""
    member, host = _apart(fleet, rng)
    kbit_per_s = rng.choice((256, 2_000, 20_000))

    async def inject() -> None:
        await host.narrow(kbit_per_s)

    return Fault("host narrow", (member.name,), rng.uniform(0.5, 4.0), inject, host.widen)


_MAKERS: tuple[Maker, ...] = (
    killed,
    killed,
    stopped,
    stopped,
    terminated,
    bad_network,
    bad_network,
    forged_receipts,
    forged_receipts,
    forgotten_state,
    full_disk,
    no_memory,
    *((stepped_clock,) if CAN_STEP else ()),
)
"""One named twice comes up twice as often."""

_MAKERS_OF_HOSTS: tuple[Maker, ...] = (cut_host, cut_host, narrow_host)


def _signalled(
    name: str, fleet: Fleet, member: Member, number: signal.Signals, lasts_s: float
) -> Fault:
    async def inject() -> None:
        if member.child:
            member.child.signal(number)

    async def heal() -> None:
        if member.child:
            member.child.signal(signal.SIGCONT)
        await asyncio.sleep(0)  # the fleet's own task sees the death first
        await fleet.wait_serving(member)

    return Fault(name, (member.name,), lasts_s, inject, heal)


def _any_member(fleet: Fleet, rng: random.Random) -> Member:
    return rng.choice(list(fleet.members.values()))


def _apart(fleet: Fleet, rng: random.Random) -> tuple[Member, Host]:
    members = [(member, member.host) for member in fleet.members.values() if member.host]
    return rng.choice(members)


def _limit(pid: int, which: int, value: int) -> None:
    """Sets a process's soft limit; one that died meanwhile needs none."""
    try:
        _, hard = resource.prlimit(pid, which)
        resource.prlimit(pid, which, (value, hard))
    except ProcessLookupError:
        return


async def _nothing() -> None:
    return
