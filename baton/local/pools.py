"""The worker pools of a local stack, resized while it runs.

Wishes come as numbers: "this many workers of a role". The pools start and stop processes to match,
and never wait for them. A worker that could not start stays in view until the size is asked for
again, which replaces it.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from baton.local.member import Member, MemberState
from baton.local.roles import Role

_GONE = (MemberState.STOPPING, MemberState.STOPPED)


@dataclass(slots=True)
class PoolSize:
    """How many workers a pool is to have."""

    replicas: int


@dataclass(frozen=True, slots=True)
class Hands:
    """What the pools do to the stack.

    `add` starts a worker, `retire` drains and forgets it, `move` drains it and makes it a worker of
    the other role under another name.
    """

    members: Callable[[], Collection[Member]]
    add: Callable[[Role], object]
    retire: Callable[[Member], None]
    move: Callable[[Member, Role], object]


class WorkerPools:
    """Both pools. Used on the event loop only."""

    def __init__(self, hands: Hands, sizes: dict[Role, int]) -> None:
        self._hands = hands
        self.sizes = {role: PoolSize(count) for role, count in sizes.items()}

    def workers(self, role: Role) -> list[Member]:
        """Returns all processes of a pool, those that drain or failed too, oldest first."""
        return [member for member in self._hands.members() if member.role is role]

    def set_replicas(self, role: Role, replicas: int, victims: Sequence[str] = ()) -> None:
        """Starts or drains workers until the pool has `replicas`; returns at once.

        Who is not ready goes first, then the `victims`, then the newest.
        """
        self.sizes[role].replicas = replicas
        for member in self.workers(role):
            if member.state is MemberState.FAILED:
                self._hands.retire(member)
        live = [it for it in self.workers(role) if it.state not in (*_GONE, MemberState.FAILED)]
        for _ in range(replicas - len(live)):
            self._hands.add(role)
        order = {name: rank for rank, name in enumerate(victims)}
        live.reverse()
        live.sort(key=lambda it: (it.was_ready, order.get(it.name, len(order))))
        for member in live[: max(0, len(live) - replicas)]:
            self._hands.retire(member)

    def move(self, to: Role, names: Sequence[str]) -> None:
        """Moves ready workers of the other pool to a pool; returns at once.

        Names of workers that are not there, or not ready, are left alone.
        """
        giver = to.other_pool
        for member in self.workers(giver):
            if member.name in names and member.is_ready and not member.stopping.is_set():
                self.sizes[giver].replicas -= 1
                self.sizes[to].replicas += 1
                self._hands.move(member, to)

    def last_move_s(self, role: Role) -> float | None:
        """Returns how many seconds the newest worker took to come over; None before the first."""
        moves = [it.move_s for it in self.workers(role) if it.move_s is not None]
        return moves[-1] if moves else None

    def last_start_s(self, role: Role) -> float | None:
        """Returns how many seconds the newest worker took to get ready; None before the first."""
        starts = [it.start_s for it in self.workers(role) if it.start_s is not None]
        return starts[-1] if starts else None
