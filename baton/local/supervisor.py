"""Gives each member of the stack its lives: start, watch, tell when it is ready, start again."""

import asyncio
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass

from redis.asyncio import Redis

from baton.local import probes
from baton.local.child import Child, ChildSpec, start_child
from baton.local.member import Member, MemberState, StackEvent
from baton.local.plan import Plan, StackOptions
from baton.local.roles import Role
from baton.local.scrape import Scrape
from baton.state.background import running
from baton.state.embedded import HOST

_FIRST_PAUSE_S = 0.25
_LONGEST_PAUSE_S = 10.0
_STEADY_AFTER_S = 30.0
_START_GRACE_S = 2.0

Observer = Callable[[StackEvent], None]


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What all members share."""

    plan: Plan
    redis_url: str
    redis: Redis
    router_address: Callable[[], str] = lambda: ""
    control_address: Callable[[], str] = lambda: ""


class Supervisor:
    """Runs members; `observe` is called on the event loop at every change of a state."""

    def __init__(self, options: StackOptions, shared: Surroundings, observe: Observer) -> None:
        self._options = options
        self._shared = shared
        self._observe = observe
        self._changed = asyncio.Event()
        self.scrape = Scrape(shared.plan.run_dir)

    async def run(self, member: Member) -> None:
        """Gives the member one life after another until it is stopped or may have no more.

        One that was never ready is not tried again: what is wrong then is for people to mend.
        """
        pause_s = _FIRST_PAUSE_S
        while not member.stopping.is_set():
            began_s = time.monotonic()
            code = await self._live(member)
            if time.monotonic() - began_s > _STEADY_AFTER_S:
                pause_s = _FIRST_PAUSE_S
            if member.stopping.is_set() or member.take_restart_wish():
                continue
            why = member.problem = member.problem or ended(code)
            if not (member.was_ready and self._options.is_restarting):
                self.move(member, MemberState.FAILED, why)
                return
            self.move(member, MemberState.RESTARTING, f"{why}; starts again in {pause_s:g} s")
            await _pause(member, pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
        self.move(member, MemberState.STOPPED)

    async def stop(self, member: Member) -> None:
        """Ends the member's last life in order, or by force when it takes too long."""
        member.stopping.set()
        if member.child is None or member.pid is None:
            return
        # One that is still starting holds nothing that is worth a long farewell.
        grace_s = self._options.stop_grace_s if member.is_ready else _START_GRACE_S
        self.move(member, MemberState.STOPPING)
        if not await member.child.stop(grace_s):
            why = f"did not stop in {grace_s:g} s and was killed"
            self.move(member, MemberState.STOPPING, why)

    async def move_role(self, member: Member, address: str) -> None:
        """Has the worker at `address` take on the role and name that its member has by now.

        The process goes on with its model; one that cannot is started again in the new role.
        """
        child, began_s = member.child, time.time()
        assert child is not None
        member.start_s = None
        if not await probes.change_role(address, member.role.value, member.name):
            member.is_restart_wanted = True
            await child.stop(self._options.stop_grace_s)
        while not await self._is_ready(member, began_s):
            if member.stopping.is_set() or member.state is MemberState.FAILED:
                return
            await probes.poll_pause()
        member.move_s = time.time() - began_s
        if member.state is MemberState.STARTING:
            self.move(member, MemberState.READY)

    def move(self, member: Member, state: MemberState, detail: str = "") -> None:
        """Puts the member into another state and tells."""
        member.state = state
        self._changed.set()
        self._observe(StackEvent(member.name, state, detail))

    def notify(self) -> None:
        """Wakes those who wait for a change."""
        self._changed.set()

    async def change(self) -> None:
        """Returns after the next change of any member's state."""
        self._changed.clear()
        await self._changed.wait()

    async def _live(self, member: Member) -> int:
        """Starts the member's process and returns its exit code once it ended."""
        child = await start_child(self._spec(member))
        member.begin_life(child)
        self.move(member, MemberState.STARTING)
        try:
            if member.stopping.is_set():
                await child.stop(_START_GRACE_S)
            async with running(self._until_ready(member, child)):
                return await child.wait()
        finally:
            child.kill()

    def _spec(self, member: Member) -> ChildSpec:
        spec = self._bare_spec(member)
        return self.scrape.offering(spec, member.role) if self._shared.plan.has_metrics else spec

    def _bare_spec(self, member: Member) -> ChildSpec:
        plan = self._shared.plan
        if member.role is Role.REDIS:
            return plan.redis_spec(member.port)
        if member.role is Role.GATEWAY:
            return plan.gateway_spec(member.name, member.port, self._shared.router_address())
        if member.role is Role.AUTOSCALER:
            control = self._shared.control_address()
            return plan.autoscaler_spec(member.name, self._shared.redis_url, control)
        return plan.service_spec(member.role, member.name, member.port, self._shared.redis_url)

    async def _until_ready(self, member: Member, child: Child) -> None:
        try:
            async with asyncio.timeout(self._options.ready_timeout_s):
                while not await self._is_ready(member, child.started_at_s):
                    await probes.poll_pause()
        except TimeoutError:
            member.problem = f"was not ready within {self._options.ready_timeout_s:g} s"
            child.kill()
            return
        member.was_ready = True
        member.start_s = time.time() - child.started_at_s
        self.move(member, MemberState.READY)

    async def _is_ready(self, member: Member, since_s: float) -> bool:
        if member.role is Role.REDIS:
            member.address = f"{HOST}:{member.port}"
            return await probes.redis_answers(self._shared.redis, member.pid or 0)
        if member.role is Role.GATEWAY:
            member.address = f"{self._shared.plan.gateway_host}:{member.port}"
            return await probes.http_answers(member.address, "/livez")
        record = await probes.find_record(self._shared.redis, member.name, since_s)
        if record is None:
            return False
        member.address, member.incarnation = record.address, record.incarnation
        if member.role is Role.ROUTER:
            # Clients know it by its address, so its next life has the same.
            member.port = int(record.address.rpartition(":")[2])
        return await probes.is_serving(record.address, member.role.health_name)


def ended(code: int) -> str:
    """Returns an exit code in words."""
    return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"


async def _pause(member: Member, pause_s: float) -> None:
    """Waits, less long when the member is stopped."""
    try:
        async with asyncio.timeout(pause_s):
            await member.stopping.wait()
    except TimeoutError:
        return
