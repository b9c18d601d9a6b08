"""The whole mesh as child processes: started, watched, restarted, and stopped in order.

    async with Stack(StackOptions(prefill=1, decode=1)) as stack:
        ...  # stack.router_address serves

Entering returns when every service is ready, the router sees every worker and every decode worker
has a proven pair with every prefill worker; it raises StartupError, with the end of the log, when
a child dies on the way. Leaving stops everything. No child survives this process, however it ends
(see baton/launch.py), so enter the stack from the main thread.
"""

import asyncio
import signal
import sys
from collections import Counter
from collections.abc import Collection, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from baton.errors import StartupError
from baton.local import probes
from baton.local.child import log_tail
from baton.local.control import StackControl
from baton.local.member import Member, MemberState, StackEvent
from baton.local.plan import StackOptions, make_plan
from baton.local.pools import Hands, WorkerPools
from baton.local.roles import STOP_ORDER, Role
from baton.local.supervisor import Observer, Supervisor, Surroundings
from baton.ports import free_port
from baton.state.connect import connect, ping_or_fail
from baton.state.embedded import HOST

_AUTOSCALER = "autoscaler-0"
_GATEWAY = "gateway-0"
_ROUTER = "router-0"
_TAIL_LINES = 20


def ignore(_: StackEvent) -> None:
    """An observer that does not care."""


class Stack:
    """Runs the stack while entered; see the module's docstring.

    `observe` is called on the event loop at every change of a member's state.
    """

    def __init__(self, options: StackOptions, observe: Observer = ignore) -> None:
        self.options = options
        self._observe = observe
        self._members: dict[str, Member] = {}
        self._named: Counter[Role] = Counter()
        self._exit = AsyncExitStack()

    @property
    def members(self) -> Collection[Member]:
        """All members, in the order in which they were added."""
        return self._members.values()

    @property
    def processes(self) -> Mapping[str, int]:
        """Process ids of the members that run now, by name."""
        return {member.name: member.pid for member in self.members if member.pid is not None}

    @property
    def router_address(self) -> str:
        """host:port of the router; the same through all its lives."""
        return self._members[_ROUTER].address

    @property
    def gateway_address(self) -> str:
        """host:port of the gateway; empty without one."""
        return self._members[_GATEWAY].address if _GATEWAY in self._members else ""

    @property
    def prometheus_config(self) -> Path:
        """The configuration for a Prometheus that follows this stack; with metrics only."""
        return self._supervisor.scrape.config

    @property
    def pools(self) -> WorkerPools:
        """The worker pools, which may be resized."""
        return self._pools

    @property
    def redis_url(self) -> str:
        """Where the stack's Redis is."""
        return self._shared.redis_url

    @property
    def control_address(self) -> str:
        """Where the stack listens for an autoscaler."""
        return self._control.address

    @property
    def run_dir(self) -> Path:
        """The folder with the logs."""
        return self._shared.plan.run_dir

    def log(self, name: str) -> Path:
        """Returns the log file of a member, all its lives in one."""
        return self.run_dir / f"{name}.log"

    async def __aenter__(self) -> Self:
        plan = make_plan(self.options)
        redis_port = free_port(HOST) if plan.embeds_redis else 0
        url = plan.redis_url(redis_port)
        redis = connect(url)
        self._exit.push_async_callback(redis.aclose)
        self._control = StackControl(lambda: self._pools)
        self._shared = Surroundings(
            plan, url, redis, lambda: self.router_address, lambda: self._control.address
        )
        self._supervisor = Supervisor(self.options, self._shared, self._observe)
        self._tasks = await self._exit.enter_async_context(asyncio.TaskGroup())
        hands = Hands(lambda: self.members, self._add_worker, self._retire, self._begin_move)
        self._pools = WorkerPools(hands, dict(plan.workers))
        try:
            await self._start(redis_port)
        except BaseException:
            await self.__aexit__(*sys.exc_info())
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            await self.stop()
        finally:
            if isinstance(error, asyncio.CancelledError):
                await self._exit.__aexit__(kind, error, traceback)
            else:
                # Shown to the task group, any other error would come back inside a group.
                await self._exit.aclose()

    def member(self, name: str) -> Member:
        """Returns a member: its state, address, process id and how many lives it had."""
        return self._members[name]

    def kill(self, name: str, number: signal.Signals = signal.SIGKILL) -> None:
        """Sends a signal to a member; one that dies of it is restarted like any other."""
        member = self._members[name]
        if member.child is None or member.pid is None:
            return
        member.child.signal(number)
        if number is signal.SIGKILL:
            # Known to be dead before the kernel says so: `wait_ready` waits for the next life.
            self._supervisor.move(member, MemberState.RESTARTING, "killed")

    async def restart(self, name: str) -> None:
        """Stops a member in order, starts it anew and returns when the mesh is whole again."""
        member = self._members[name]
        lives = member.lives
        if member.state is MemberState.FAILED:
            self._supervise(member)
        elif member.child is not None:
            member.is_restart_wanted = True
            await member.child.stop(self.options.stop_grace_s)
        while member.lives == lives:
            await self._supervisor.change()
        await self.wait_ready()

    async def add_worker(self, role: Role) -> str:
        """Starts one more prefill or decode worker; returns its name when the mesh has it."""
        member = self._add_worker(role)
        self._pools.sizes[role].replicas += 1
        await self.wait_ready()
        return member.name

    async def remove_worker(self, name: str) -> None:
        """Drains and stops one worker; returns when its process has ended."""
        member = self._members[name]
        size = self._pools.sizes[member.role]
        size.replicas = max(0, size.replicas - 1)
        await self._end(member)

    async def move_worker(self, name: str) -> str:
        """Makes a worker one of the other role; returns its new name when the mesh has it."""
        member = self._members[name]
        self._pools.move(member.role.other_pool, [name])
        await self.wait_ready()
        return member.name

    async def wait_ready(self) -> None:
        """Returns when the mesh is whole: all ready, all seen by the router, all pairs proven.

        Raises StartupError when a member failed or it takes longer than a start may take.
        """
        missing = ""
        try:
            async with asyncio.timeout(self.options.ready_timeout_s):
                await self._wait_members()
                while missing := await self._missing():
                    await probes.poll_pause()
                    await self._wait_members()
        except TimeoutError as error:
            late = [f"{each.name} {each.state.value}" for each in self.members if not each.is_ready]
            raise StartupError(
                f"the mesh is not whole after {self.options.ready_timeout_s:g} s: "
                f"{', '.join(late) or missing}; logs are in {self.run_dir}"
            ) from error

    async def stop(self) -> None:
        """Stops everything in order; kills what is left when it is cancelled. Again is harmless."""
        try:
            for role in STOP_ORDER:
                group = [member for member in self.members if member.role is role]
                await asyncio.gather(*map(self._supervisor.stop, group))
        finally:
            for member in self.members:
                member.stopping.set()
                if member.child is not None:
                    member.child.kill()

    async def _start(self, redis_port: int) -> None:
        plan = self._shared.plan
        if plan.embeds_redis:
            plan.redis_spec(redis_port)  # says so when no Redis is installed
            self._add(Role.REDIS, Role.REDIS.value, redis_port)
            await self._wait_members()
        await ping_or_fail(self._shared.redis, self._shared.redis_url)
        self._add(Role.ADMISSION, "admission-0")
        self._add(Role.ROUTER, _ROUTER, plan.router_port)
        for role, count in plan.workers.items():
            for _ in range(count):
                self._add_worker(role)
        if plan.is_autoscaled:
            await self._control.start()
            self._exit.push_async_callback(self._control.stop)
            self._add(Role.AUTOSCALER, _AUTOSCALER)
        if plan.gateway_port is not None:
            await self._start_gateway(plan.gateway_port)
        await self.wait_ready()

    async def _start_gateway(self, wished_port: int) -> None:
        """Starts the gateway once the router's address is known, while workers still load."""
        router = self._members[_ROUTER]
        async with asyncio.timeout(self.options.ready_timeout_s):
            while not router.address and router.state is not MemberState.FAILED:
                await probes.poll_pause()
        port = wished_port or free_port(self._shared.plan.gateway_host)
        self._add(Role.GATEWAY, _GATEWAY, port)

    def _add_worker(self, role: Role) -> Member:
        """Starts a worker. Names are never used twice: another life is another worker."""
        return self._add(role, self._new_name(role))

    def _new_name(self, role: Role) -> str:
        number, self._named[role] = self._named[role], self._named[role] + 1
        return f"{role.value}-{number}"

    def _begin_move(self, member: Member, to: Role) -> None:
        """Renames a worker at once; it drains and comes back in its new role meanwhile."""
        del self._members[member.name]
        member.name, member.role = self._new_name(to), to
        self._members[member.name] = member
        address, member.address, member.incarnation = member.address, "", ""
        self._supervisor.move(member, MemberState.STARTING, f"was at {address} in the other role")
        self._tasks.create_task(self._supervisor.move_role(member, address))

    def _add(self, role: Role, name: str, port: int = 0) -> Member:
        member = Member(name, role, port)
        self._members[name] = member
        self._supervise(member)
        return member

    def _retire(self, member: Member) -> None:
        member.stopping.set()
        self._tasks.create_task(self._end(member))

    async def _end(self, member: Member) -> None:
        """Drains and stops a worker, and forgets it once its process ended."""
        await self._supervisor.stop(member)
        while member.state not in (MemberState.STOPPED, MemberState.FAILED):
            await self._supervisor.change()
        self._members.pop(member.name, None)
        self._supervisor.notify()

    def _supervise(self, member: Member) -> None:
        member.state = MemberState.WAITING
        self._tasks.create_task(self._supervisor.run(member))

    async def _wait_members(self) -> None:
        while True:
            for member in self.members:
                if member.state is MemberState.FAILED:
                    raise StartupError(self._why(member))
            if all(member.is_ready for member in self.members):
                return
            await self._supervisor.change()

    async def _missing(self) -> str:
        """Returns what the mesh does not know of itself yet; empty when it is whole."""
        workers = [each for each in self.members if each.role.is_worker]
        lives = [each.incarnation for each in workers]
        if not await probes.sees_workers(self.router_address, lives):
            return "the router does not see all workers"
        prefill = {each.name for each in workers if each.role is Role.PREFILL}
        for member in (each for each in workers if each.role is Role.DECODE):
            unproven = prefill - set(await probes.connected_prefill_workers(member.address))
            if unproven:
                return f"{member.name} has no proven pair with {', '.join(sorted(unproven))}"
        return ""

    def _why(self, member: Member) -> str:
        log = self.log(member.name)
        tail = "\n".join(f"    {line}" for line in log_tail(log, _TAIL_LINES))
        return f"{member.name} {member.problem}; the end of {log}:\n{tail or '    (empty)'}"
