"""The process of both worker roles."""

from collections.abc import Callable

from baton.compute import ComputeOptions
from baton.process import ProcessOptions, Surroundings, run_process
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
            build_engine(around.config, compute, role, around.listening),
            build_transport(around.config, identity.incarnation),
            around.telemetry,
            build_service,
        )
        await host.run(around.redis, around.stop)

    run_process(role.value, options, serve)


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
