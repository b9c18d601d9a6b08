"""The process of both worker roles."""

from collections.abc import Callable
from socket import gethostname

from baton.compute import ComputeOptions
from baton.process import ProcessOptions, Surroundings, run_process
from baton.rpc.server import EVERYWHERE, Listening
from baton.state.records import WorkerRole, new_incarnation
from baton.worker.build import build_engine, build_transport
from baton.worker.host import WorkerHost, WorkerIdentity
from baton.worker.parts import RoleService, WorkerParts


def run_worker(
    role: WorkerRole,
    options: ProcessOptions,
    compute: ComputeOptions,
    build_service: Callable[[WorkerParts], RoleService],
) -> None:
    """Runs a worker until SIGTERM or SIGINT; exits with 2 and one line when it cannot start."""

    async def serve(around: Surroundings) -> None:
        identity = _identify(role, around)
        host = WorkerHost(
            identity,
            around.config,
            build_engine(around.config, compute, role, _reachable(around.listening)),
            build_transport(around.config, identity.incarnation),
            around.telemetry,
            build_service,
        )
        await host.run(around.redis, around.stop)

    run_process(role.value, options, serve)


def _reachable(listening: Listening) -> str:
    """Returns the host that peers use for this worker."""
    advertised, _, _ = listening.advertise.rpartition(":")
    return advertised or (gethostname() if listening.host in EVERYWHERE else listening.host)


def _identify(role: WorkerRole, around: Surroundings) -> WorkerIdentity:
    incarnation = new_incarnation()
    listening = around.listening
    return WorkerIdentity(
        worker_id=listening.name or f"{role.value}-{incarnation[:8]}",
        incarnation=incarnation,
        role=role,
        host=listening.host,
        port=listening.port,
        advertise=listening.advertise,
    )
