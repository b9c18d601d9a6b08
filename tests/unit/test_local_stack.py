"""Child processes and their supervision, on a small program and on a real Redis."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import pytest

from baton.compute import ComputeOptions
from baton.errors import StartupError
from baton.local.child import ChildSpec, log_tail, start_child
from baton.local.member import Member, MemberState, StackEvent
from baton.local.plan import StackOptions, make_plan
from baton.local.roles import Role
from baton.local.stack import Stack
from baton.local.supervisor import Supervisor, Surroundings, ended
from baton.ports import free_port
from baton.state.connect import connect
from baton.state.embedded import HOST
from tests.support.waiting import eventually

OWN_REDIS = {"BATON_MESH__REDIS_URL": "", "BATON_CONFIG": ""}
STUBBORN = """
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
grandchild = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print(grandchild.pid, flush=True)
time.sleep(60)
"""
PARENT = """
import asyncio, pathlib, sys
from baton.local.child import ChildSpec, start_child
async def main():
    command = (sys.executable, "-c", "import time; time.sleep(60)")
    child = await start_child(ChildSpec("x", command, {}, pathlib.Path(sys.argv[1])))
    print(child.pid, flush=True)
    await child.wait()
asyncio.run(main())
"""


def is_gone(pid: int) -> bool:
    """Tells whether a process ended; nobody may be there to collect an orphan."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def spec(tmp_path: Path, program: str) -> ChildSpec:
    command = (sys.executable, "-c", program)
    return ChildSpec("child", command, dict(os.environ), tmp_path / "logs" / "child.log")


async def test_child_writes_its_log_and_tells_its_exit_code(tmp_path: Path) -> None:
    what = spec(tmp_path, "import sys; print('one\\ntwo\\nthree'); sys.exit('four')")
    child = await start_child(what)
    assert await child.wait() == 1
    assert set(log_tail(what.log, 9)) == {"one", "two", "three", "four"}
    assert len(log_tail(what.log, 2)) == 2
    assert await child.stop(grace_s=1)


async def test_child_that_ignores_sigterm_is_killed_with_its_own_children(tmp_path: Path) -> None:
    what = spec(tmp_path, STUBBORN)
    child = await start_child(what)
    await eventually(lambda: bool(log_tail(what.log, 1)))
    grandchild = int(log_tail(what.log, 1)[0])
    assert not await child.stop(grace_s=0.1)
    assert child.exit_code == -signal.SIGKILL
    await eventually(lambda: is_gone(grandchild))


async def test_child_of_a_killed_parent_dies(tmp_path: Path) -> None:
    if sys.platform != "linux":
        pytest.skip("only Linux tells a child of its parent's death")
    command = [sys.executable, "-c", PARENT, str(tmp_path / "x.log")]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as parent:  # noqa: ASYNC220
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert not is_gone(pid)
        parent.kill()
        await eventually(lambda: is_gone(pid))


def test_exit_codes_are_told_in_words() -> None:
    assert ended(2) == "ended with code 2"
    assert ended(-9) == "was ended by SIGKILL"


@asynccontextmanager
async def supervised(
    tmp_path: Path, *, is_restarting: bool = True
) -> AsyncIterator[tuple[Supervisor, Member, list[StackEvent]]]:
    """Yields a Redis that is ready, as the only member, and its events so far."""
    options = StackOptions(run_dir=tmp_path, is_restarting=is_restarting, environ=OWN_REDIS)
    plan, port = make_plan(options), free_port(HOST)
    redis = connect(plan.redis_url(port))
    events: list[StackEvent] = []
    supervisor = Supervisor(options, Surroundings(plan, plan.redis_url(port), redis), events.append)
    member = Member("redis", Role.REDIS, port)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(supervisor.run(member))
        await eventually(lambda: member.is_ready)
        yield supervisor, member, events
        await supervisor.stop(member)
    await redis.aclose()


async def test_dead_member_is_started_again_on_the_same_port(tmp_path: Path) -> None:
    async with supervised(tmp_path) as (_, member, events):
        first, address = member.pid, member.address
        assert member.child is not None
        member.child.signal(signal.SIGKILL)
        await eventually(lambda: member.lives == 2 and member.is_ready)
        assert member.pid != first
        assert member.address == address
        (death,) = [event for event in events if event.state is MemberState.RESTARTING]
        assert death.detail == "was ended by SIGKILL; starts again in 0.25 s"


async def test_dead_member_stays_dead_where_nobody_restarts(tmp_path: Path) -> None:
    async with supervised(tmp_path, is_restarting=False) as (_, member, _events):
        assert member.child is not None
        member.child.signal(signal.SIGKILL)
        await eventually(lambda: member.state is MemberState.FAILED)
        assert member.problem == "was ended by SIGKILL"
        assert member.pid is None


async def test_stopped_member_stays_stopped(tmp_path: Path) -> None:
    async with supervised(tmp_path) as (supervisor, member, events):
        pid = member.pid
        await supervisor.stop(member)
        await eventually(lambda: member.state is MemberState.STOPPED)
        assert pid is not None
        assert is_gone(pid)
    states = [event.state for event in events]
    assert MemberState.RESTARTING not in states


async def test_stack_without_a_model_fails_with_the_end_of_the_log(tmp_path: Path) -> None:
    environ = {**OWN_REDIS, "BATON_MODEL": str(tmp_path / "none")}
    options = StackOptions(
        prefill=0, decode=0, router_port=0, run_dir=tmp_path / "run", environ=environ
    )
    before = psutil.Process().children()  # other tests' multiprocessing leaves a tracker
    with pytest.raises(StartupError) as caught:
        async with Stack(options):
            pass
    message = str(caught.value)
    assert "router-0 ended with code 2; the end of" in message
    assert "no such directory; set `model`" in message
    assert psutil.Process().children() == before


async def test_own_run_dirs_do_not_collide(tmp_path: Path) -> None:
    options = StackOptions(environ={"XDG_STATE_HOME": str(tmp_path), **OWN_REDIS})
    dirs = {make_plan(options).run_dir for _ in range(3)}
    assert len(dirs) == 3
    assert all(path.is_relative_to(tmp_path / "baton" / "run") for path in dirs)


def test_run_dir_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    blocker = tmp_path / "file"
    blocker.write_text("")
    options = StackOptions(run_dir=blocker / "run", environ=OWN_REDIS)
    with pytest.raises(StartupError, match="no folder for logs can be made"):
        make_plan(options)


def test_every_worker_gets_the_compute_flags_and_nobody_else(tmp_path: Path) -> None:
    compute = ComputeOptions(device="cpu", dtype="bfloat16", token_budget=128)
    plan = make_plan(StackOptions(run_dir=tmp_path, compute=compute, environ=OWN_REDIS))
    flags = ("--device", "cpu", "--dtype", "bfloat16", "--token-budget", "128")
    for role in (Role.PREFILL, Role.DECODE):
        assert plan.service_spec(role, "it", 0, "redis://here").command[-len(flags) :] == flags
    assert "--device" not in plan.service_spec(Role.ROUTER, "it", 0, "redis://here").command
