"""Containers of one docker compose project, by the command line of `docker compose`.

`up --scale` starts containers, and stops the newest ones when a service shrinks; each has its
`stop_grace_period` to drain. Nothing else of the project is touched.
"""

import asyncio
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from services.autoscaler.orchestrators.base import OrchestratorError, PoolReplicas
from services.autoscaler.state import Pool

TIMEOUT_S = 120.0


class ComposeOrchestrator:
    """Scales two services of a project. `command` is the program and its first arguments.

    `services` are the names of the pools' services. A call that started the slow `up` does not
    wait for the containers to be ready.
    """

    name = "compose"
    moves = False

    def __init__(
        self,
        services: Mapping[Pool, str],
        command: Sequence[str] = ("docker", "compose"),
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        self._services = services
        self._command = command
        self._timeout_s = timeout_s

    async def observe(self) -> Mapping[Pool, PoolReplicas]:
        """See Orchestrator."""
        output = await self._run("ps", "--all", "--format", "json")
        containers = _read(output)
        return {pool: self._pool(name, containers) for pool, name in self._services.items()}

    async def scale(self, pool: Pool, replicas: int, victims: Sequence[str] = ()) -> None:
        """See Orchestrator. Both services are named, or compose would reset the other one."""
        now = await self.observe()
        sizes = {**{each: it.wanted for each, it in now.items()}, pool: replicas}
        scales = [f"{self._services[each]}={size}" for each, size in sizes.items()]
        await self._run(
            "up", "--detach", "--no-recreate", "--no-deps", "--no-build",
            *(word for scale in scales for word in ("--scale", scale)),
            *self._services.values(),
        )  # fmt: skip

    async def move(self, to: Pool, workers: Sequence[str]) -> None:
        """See Orchestrator: it cannot."""
        raise OrchestratorError(f"{self.name} cannot move {', '.join(workers)} to {to.value}")

    async def close(self) -> None:
        """See Orchestrator."""

    def _pool(self, service: str, containers: list[dict[str, Any]]) -> PoolReplicas:
        own = [it for it in containers if it.get("Service") == service]
        live = [it for it in own if it.get("State") in ("created", "running", "restarting")]
        failed = [
            it
            for it in own
            if it.get("State") == "restarting"
            or it.get("Health") == "unhealthy"
            or (it.get("State") == "exited" and it.get("ExitCode"))
        ]
        problem = f"{failed[0].get('Name')} is {failed[0].get('Status')}" if failed else ""
        return PoolReplicas(len(live), len(failed), problem)

    async def _run(self, *arguments: str) -> str:
        try:
            process = await asyncio.create_subprocess_exec(
                *self._command,
                *arguments,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
            )
        except OSError as error:
            raise OrchestratorError(f"{self._command[0]} cannot be run: {error}") from error
        try:
            async with asyncio.timeout(self._timeout_s):
                output, errors = await process.communicate()
        except TimeoutError as error:
            raise OrchestratorError(
                f"`{arguments[0]}` took longer than {self._timeout_s:g} s"
            ) from error
        finally:
            if process.returncode is None:
                with suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
        if process.returncode:
            said = errors.decode(errors="replace").strip().splitlines()[-1:] or ["no word"]
            raise OrchestratorError(f"`{arguments[0]}` ended with {process.returncode}: {said[0]}")
        return output.decode(errors="replace")


def _read(output: str) -> list[dict[str, Any]]:
    """Returns the containers; old versions print one array, new ones an object a line."""
    try:
        if output.lstrip().startswith("["):
            whole: list[dict[str, Any]] = json.loads(output)
            return whole
        return [json.loads(line) for line in output.splitlines() if line.strip()]
    except ValueError as error:
        raise OrchestratorError(f"`ps` printed no JSON: {error}") from error
