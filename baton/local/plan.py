"""What a local stack consists of, worked out from its options before anything starts."""

import itertools
import os
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from baton.compute import ComputeOptions
from baton.config import Config, load_config
from baton.errors import StartupError
from baton.local.child import ChildSpec
from baton.local.roles import Role
from baton.ports import ROUTER_PORT
from baton.rpc.server import EVERYWHERE
from baton.state.embedded import HOST, find_redis_server, server_arguments

_REDIS_MAX_BYTES = 256 * 2**20
_ENV_REDIS = "BATON_MESH__REDIS_URL"
_ENV_THREADS = "OMP_NUM_THREADS"


@dataclass(frozen=True, slots=True)
class StackOptions:
    """How to run a stack. None takes the configuration's value. `compute` is for every worker.

    `environ` is added to the environment of this process for all children; `run_dir` receives the
    logs. A port 0 is any, and without a `gateway_port` there is no gateway. With `has_metrics`
    every service offers its metrics to Prometheus. `autoscale` starts an autoscaler with these
    flags beside the usual ones. A child gets `ready_timeout_s` to become ready. Without
    `is_restarting` a child that dies stays dead until `Stack.restart`.
    """

    config_path: Path | None = None
    prefill: int | None = None
    decode: int | None = None
    router_port: int = ROUTER_PORT
    gateway_port: int | None = None
    keys_path: Path | None = None
    has_metrics: bool = False
    environ: Mapping[str, str] = field(default_factory=dict)
    run_dir: Path | None = None
    compute: ComputeOptions = field(default_factory=ComputeOptions)
    autoscale: tuple[str, ...] | None = None
    is_restarting: bool = True
    ready_timeout_s: float = 60.0
    stop_grace_s: float = 20.0


@dataclass(frozen=True, slots=True)
class Plan:
    """The stack's configuration and the environment and place of its children."""

    config: Config
    config_path: Path | None
    environ: Mapping[str, str]
    run_dir: Path
    router_port: int
    gateway_port: int | None
    keys_path: Path | None
    has_metrics: bool
    workers: Mapping[Role, int]
    compute: ComputeOptions = field(default_factory=ComputeOptions)
    autoscale: tuple[str, ...] | None = None

    @property
    def is_autoscaled(self) -> bool:
        """Tells whether the stack runs an autoscaler of its own."""
        return self.autoscale is not None

    @property
    def embeds_redis(self) -> bool:
        """Tells whether the stack starts a Redis of its own."""
        return not self.config.mesh.redis_url

    @property
    def gateway_host(self) -> str:
        """Where the gateway is reached from this machine."""
        host = self.config.mesh.host
        return HOST if host in EVERYWHERE else host

    def redis_url(self, port: int) -> str:
        """Returns where Redis is, given the port of an own one."""
        return self.config.mesh.redis_url or f"redis://{HOST}:{port}/0"

    def redis_spec(self, port: int) -> ChildSpec:
        """Returns how the own Redis is started. Raises StartupError when none is installed."""
        arguments = server_arguments(self.run_dir, port, _REDIS_MAX_BYTES)
        name = Role.REDIS.value
        return ChildSpec(
            name, (str(find_redis_server()), *arguments), self.environ, self._log(name)
        )

    def service_spec(self, role: Role, name: str, port: int, redis_url: str) -> ChildSpec:
        """Returns how a service is started; port 0 is any."""
        command = [sys.executable, "-m", role.module, "--name", name, "--port", str(port)]
        if self.config_path is not None:
            command += ["--config", str(self.config_path.resolve())]
        environ = {**self.environ, _ENV_REDIS: redis_url}
        if role.is_worker:
            command += self.compute.arguments()
            environ.setdefault(_ENV_THREADS, str(self._threads()))
        return ChildSpec(name, tuple(command), environ, self._log(name))

    def gateway_spec(self, name: str, port: int, router: str) -> ChildSpec:
        """Returns how the gateway of the router at the address `router` is started."""
        command = [sys.executable, "-m", Role.GATEWAY.module, "--name", name, "--port", str(port)]
        command += ["--router", router]
        for option, path in (("--config", self.config_path), ("--keys", self.keys_path)):
            if path is not None:
                command += [option, str(path.resolve())]
        return ChildSpec(name, tuple(command), self.environ, self._log(name))

    def autoscaler_spec(self, name: str, redis_url: str, control: str) -> ChildSpec:
        """Returns how an autoscaler that asks the stack at `control` is started."""
        base = self.service_spec(Role.AUTOSCALER, name, 0, redis_url)
        flags = ("--orchestrator", "local", "--control", control, *(self.autoscale or ()))
        return ChildSpec(base.name, (*base.command, *flags), base.environ, base.log)

    def _threads(self) -> int:
        """Returns each worker's share of the cores: more threads than cores slow all of them."""
        cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
        return max(1, cores // max(1, sum(self.workers.values())))

    def _log(self, name: str) -> Path:
        return self.run_dir / f"{name}.log"


def make_plan(options: StackOptions) -> Plan:
    """Reads the configuration and fills in the options. Raises ConfigError and StartupError."""
    environ = {**os.environ, **options.environ}
    config = load_config(options.config_path, environ)
    pools = config.autoscale
    return Plan(
        config=config,
        config_path=options.config_path,
        environ=environ,
        run_dir=_run_dir(options.run_dir, environ),
        router_port=options.router_port,
        gateway_port=options.gateway_port,
        keys_path=options.keys_path,
        has_metrics=options.has_metrics,
        workers={
            Role.PREFILL: _first(options.prefill, pools.prefill.min_replicas),
            Role.DECODE: _first(options.decode, pools.decode.min_replicas),
        },
        compute=options.compute,
        autoscale=options.autoscale,
    )


def _first(wished: int | None, configured: int) -> int:
    return configured if wished is None else wished


def _run_dir(wished: Path | None, environ: Mapping[str, str]) -> Path:
    """Makes the folder for this run's logs: under $XDG_STATE_HOME, else the working directory."""
    home = environ.get("XDG_STATE_HOME")
    root = Path(home) / "baton" / "run" if home else Path.cwd() / ".baton" / "run"
    try:
        if wished is None:
            return _new_dir(root / time.strftime("%Y%m%d-%H%M%S"))
        wished.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StartupError(
            f"no folder for logs can be made at {wished or root}: {error.strerror}; start in a "
            "folder that you may write to, or set XDG_STATE_HOME to one"
        ) from error
    return wished


def _new_dir(wished: Path) -> Path:
    """Makes a folder that nobody else has, with a number added where the name is taken."""
    for number in itertools.count(1):
        path = wished if number == 1 else wished.with_name(f"{wished.name}-{number}")
        with suppress(FileExistsError):
            path.mkdir(parents=True)
            return path
    raise AssertionError("counting never ends")
