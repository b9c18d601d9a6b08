"""The mesh's processes, each behind a proxy, each restarted on its own port when it dies."""

import asyncio
import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from baton.local import probes
from baton.local.child import Child, ChildSpec, start_child
from baton.local.roles import Role
from baton.ports import free_port
from baton.state.connect import connect
from baton.state.embedded import find_redis_server, server_arguments
from tests.chaos.clock import CAN_STEP, Clock
from tests.chaos.hosts import Host, Hosts
from tests.chaos.meddler import Meddler
from tests.chaos.nursery import Life, birth
from tests.chaos.proxy import FaultyProxy
from tests.support.waiting import eventually

_LOOPBACK = "127.0.0.1"
START_TIMEOUT_S = 180.0
_RESTART_PAUSE_S = 0.2
_NURSERY_POLL_S = 0.05
_REDIS_BYTES = 256 * 2**20


@dataclass(slots=True, eq=False)
class Member:
    """One process: it listens on `port` and is known to the others at `public_port`."""

    name: str
    role: Role
    port: int
    public_port: int
    child: Child | Life | None = None
    lives: int = 0
    started_at_s: float = 0.0
    clock: Clock | None = None
    host: Host | None = None
    listens_on: str = _LOOPBACK

    @property
    def address(self) -> str:
        """Where an observer reaches it past its proxy."""
        return f"{self.listens_on}:{self.port}"

    @property
    def pid(self) -> int:
        """Its process id; 0 while none runs."""
        return self.child.pid if self.child and self.child.exit_code is None else 0


class Fleet:
    """One Redis, and as many of the other roles as `counts` says, in its order.

    Workers run here, or on `hosts` of their own. Where it `restarts_often`, services are forked
    from nurseries. `beside` is a program that is told the Redis and lives as long as the fleet. An
    async context manager; entering returns when the mesh is whole.
    """

    def __init__(
        self,
        run_dir: Path,
        environ: dict[str, str],
        counts: dict[Role, int],
        hosts: Hosts | None = None,
        *,
        restarts_often: bool = False,
        beside: tuple[str, ...] = (),
    ) -> None:
        self.run_dir = run_dir
        self._restarts_often = restarts_often
        self._hosts = hosts
        self._here = hosts.here if hosts else _LOOPBACK
        self.members: dict[str, Member] = {}
        self.proxies: dict[str, FaultyProxy] = {}
        self.meddlers: dict[str, Meddler] = {}
        self._environ = {**os.environ, "OMP_NUM_THREADS": "1", **environ}
        self._counts = counts
        self._beside = beside
        self._others: list[Child] = []
        self._is_ending = False

    def of(self, role: Role) -> list[Member]:
        """Returns the members of one role."""
        return [member for member in self.members.values() if member.role is role]

    async def __aenter__(self) -> "Fleet":
        if self._hosts:
            await self._hosts.open()
        self._group = await asyncio.TaskGroup().__aenter__()
        try:
            await self._begin()
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def _begin(self) -> None:
        await self._add("redis", Role.REDIS)
        await eventually(self._redis_answers, START_TIMEOUT_S)
        if self._beside:
            self._others.append(await start_child(self._spec_beside()))
        for role, count in self._counts.items():
            for index in range(count):
                await self._add(f"{role.value}-{index}", role)
        await eventually(self.is_whole, START_TIMEOUT_S)

    async def __aexit__(self, *_: object) -> None:
        self._is_ending = True
        lives = [member.child for member in self.members.values() if member.child]
        children = [*lives, *self._others]
        for child in children:
            child.signal(signal.SIGCONT)
            child.kill()
        await asyncio.gather(*(child.wait() for child in children))
        await asyncio.gather(*(proxy.stop() for proxy in self.proxies.values()))
        await asyncio.gather(*(meddler.stop() for meddler in self.meddlers.values()))
        if "redis" in self.members:
            await self.redis.aclose()
        await self._group.__aexit__(None, None, None)
        if self._hosts:
            await self._hosts.close()

    async def is_whole(self) -> bool:
        """Tells whether nothing is missing."""
        return not await self.missing()

    async def missing(self) -> str:
        """Returns what keeps the mesh from being whole; empty when all serve, each router sees
        all workers and all pairs are proven.
        """
        for member in self.members.values():
            if not await self.is_serving(member):
                return f"{member.name} does not serve"
        lives = []
        for member in (*self.of(Role.PREFILL), *self.of(Role.DECODE)):
            record = await probes.find_record(self.redis, member.name, member.started_at_s - 60)
            if record is None:
                return f"{member.name} is not registered"
            lives.append(record.incarnation)
        for router in self.of(Role.ROUTER):
            if not await probes.sees_workers(router.address, lives):
                return f"{router.name} does not see all workers"
        names = {member.name for member in self.of(Role.PREFILL)}
        for member in self.of(Role.DECODE):
            pairs = await probes.connected_prefill_workers(member.address)
            if not names <= set(pairs):
                return f"{member.name} has pairs with {sorted(pairs)} only"
        return ""

    async def is_serving(self, member: Member) -> bool:
        """Tells whether the process serves; asked past its proxy."""
        if not member.pid:
            return False
        if member.role is Role.REDIS:
            return await self._redis_answers()
        return await probes.is_serving(member.address, member.role.health_name)

    async def wait_serving(self, member: Member) -> None:
        """Returns once the process serves again."""
        await eventually(lambda: self.is_serving(member), START_TIMEOUT_S)

    async def _redis_answers(self) -> bool:
        return await probes.redis_answers(self.redis, self.members["redis"].pid)

    async def _add(self, name: str, role: Role) -> None:
        is_apart = self._hosts is not None and role in (Role.PREFILL, Role.DECODE)
        host = await self._hosts.add() if self._hosts and is_apart else None
        # Redis is told to listen on loopback; what is not apart is reached through its proxy.
        listens_on = host.address if host else _LOOPBACK
        port = free_port(_LOOPBACK)
        proxy = FaultyProxy(port, listens_on, self._here)
        await proxy.start()
        self.proxies[name] = proxy
        public_port = proxy.port
        if role is Role.PREFILL:
            meddler = Meddler(f"{self._here}:{proxy.port}", self._here)
            await meddler.start()
            self.meddlers[name] = meddler
            public_port = meddler.port
        clock = Clock(self.run_dir / f"{name}.clock") if CAN_STEP else None
        member = Member(
            name, role, port, public_port, clock=clock, host=host, listens_on=listens_on
        )
        self.members[name] = member
        self._group.create_task(self._keep(member))
        if role is Role.REDIS:
            self.redis = connect(f"redis://{member.address}/0")
            await eventually(lambda: bool(member.pid), START_TIMEOUT_S)

    async def _keep(self, member: Member) -> None:
        """Gives the member one life after another until the fleet ends."""
        has_nursery = self._restarts_often and member.role is not Role.REDIS
        if has_nursery:
            self._others.append(await start_child(self._nursery(member)))
        while not self._is_ending:
            member.started_at_s = time.time()
            if has_nursery:
                member.child = await self._born(member)
            else:
                member.child = await start_child(self._spec(member, self._program(member)))
            member.lives += 1
            await member.child.wait()
            if not self._is_ending:
                await asyncio.sleep(_RESTART_PAUSE_S)

    async def _born(self, member: Member) -> Life:
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while True:
            try:
                return await birth(self._socket(member))
            except (FileNotFoundError, ConnectionRefusedError):
                if self._is_ending or time.monotonic() > deadline_s:
                    raise
            await asyncio.sleep(_NURSERY_POLL_S)

    def _spec_beside(self) -> ChildSpec:
        command = (*self._beside, "--redis-url", f"redis://{self.members['redis'].address}/0")
        return ChildSpec("beside", command, self._environ, self.run_dir / "beside.log")

    @property
    def pids(self) -> dict[str, int]:
        """The process ids by name."""
        others = {child.spec.name: child.pid for child in self._others}
        return others | {member.name: member.pid for member in self.members.values()}

    def _socket(self, member: Member) -> Path:
        return self.run_dir / f"{member.name}.socket"

    def _nursery(self, member: Member) -> ChildSpec:
        program = (sys.executable, "-m", "tests.chaos.nursery", str(self._socket(member)))
        return self._spec(member, (*program, member.role.value, *self._options(member)))

    def _program(self, member: Member) -> tuple[str, ...]:
        if member.role is Role.REDIS:
            arguments = server_arguments(self.run_dir, member.port, _REDIS_BYTES)
            return (str(find_redis_server()), *arguments)
        return (sys.executable, "-m", member.role.module, *self._options(member))

    def _options(self, member: Member) -> tuple[str, ...]:
        return (
            *("--name", member.name, "--port", str(member.port), "--host", member.listens_on),
            *("--advertise", f"{self._here}:{member.public_port}"),
        )

    def _spec(self, member: Member, program: tuple[str, ...]) -> ChildSpec:
        environ = {**self._environ, **(member.clock.environ if member.clock else {})}
        environ["BATON_MESH__REDIS_URL"] = (
            f"redis://{self._here}:{self.members['redis'].public_port}/0"
        )
        command = member.host.command(*program) if member.host else program
        return ChildSpec(member.name, command, environ, self.run_dir / f"{member.name}.log")
