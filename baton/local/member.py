"""One place in the stack: a name, and the process that fills it now, one life after another."""

import asyncio
import enum
from dataclasses import dataclass, field

from baton.local.child import Child
from baton.local.roles import Role


class MemberState(enum.Enum):
    """Where a member stands."""

    WAITING = "waiting"
    """Not started yet."""
    STARTING = "starting"
    READY = "ready"
    RESTARTING = "restarting"
    """It died and waits for its next life."""
    STOPPING = "stopping"
    STOPPED = "stopped"
    FAILED = "failed"
    """It died before it was ever ready, or stays dead because nobody restarts it."""


@dataclass(slots=True, eq=False)
class Member:
    """A process of the stack. Only the stack changes it; anybody may read it.

    `lives` counts starts. `address` and `incarnation` are those of the current life, empty until
    it registered. `port` is what the next life binds, 0 for any. `problem` says what went wrong,
    `start_s` how many seconds the last life took to get ready, `move_s` how many it took the worker
    to come over from the other pool.
    """

    name: str
    role: Role
    port: int = 0
    state: MemberState = MemberState.WAITING
    child: Child | None = None
    address: str = ""
    incarnation: str = ""
    lives: int = 0
    was_ready: bool = False
    is_restart_wanted: bool = False
    problem: str = ""
    start_s: float | None = None
    move_s: float | None = None
    stopping: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def pid(self) -> int | None:
        """The process id, or None while no process runs."""
        child = self.child
        return child.pid if child is not None and child.exit_code is None else None

    @property
    def is_ready(self) -> bool:
        """Tells whether the current life is ready for work."""
        return self.state is MemberState.READY

    def begin_life(self, child: Child) -> None:
        """Forgets the last life."""
        self.child = child
        self.lives += 1
        self.address = self.incarnation = self.problem = ""

    def take_restart_wish(self) -> bool:
        """Tells, once, whether the life that ended was ended for the sake of the next one."""
        is_wanted, self.is_restart_wanted = self.is_restart_wanted, False
        return is_wanted


@dataclass(frozen=True, slots=True)
class StackEvent:
    """A member moved to another state; `detail` is for people."""

    name: str
    state: MemberState
    detail: str
