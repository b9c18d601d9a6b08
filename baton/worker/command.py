"""The process of both worker roles: one life after another on one engine."""

from baton.compute import ComputeOptions
from baton.engine.rooms import as_follower
from baton.process import ProcessOptions, Surroundings, run_process
from baton.state.records import WorkerRole, new_incarnation
from baton.worker.build import build_engine, build_transport
from baton.worker.host import WorkerHost, WorkerIdentity
from baton.worker.role_change import BuildService, RoleChange


def run_worker(
    role: WorkerRole,
    options: ProcessOptions,
    compute: ComputeOptions,
    build_service: BuildService,
) -> None:
    """Runs a worker until SIGTERM or SIGINT; exits with 2 and one line when it cannot start.

    Asked to change its role, the worker drains, leaves the fleet and comes back as another one on
    the same engine, which keeps its model.
    """

    async def serve(around: Surroundings) -> None:
        engine = build_engine(around.config, compute, role, around.listening)
        if (follower := as_follower(engine)) is not None:
            await follower.follow(around.stop)
            return
        life: RoleChange | None = RoleChange(role, around.listening.name, build_service)
        while life is not None and not around.stop.is_set():
            identity = _identify(life, around)
            host = WorkerHost(
                identity,
                around.config,
                engine,
                build_transport(around.config, identity.incarnation),
                around.telemetry,
                life.build_service,
            )
            await host.run(around.redis, around.stop)
            life = host.next_life

    run_process(role.value, options, serve)


def _identify(life: RoleChange, around: Surroundings) -> WorkerIdentity:
    incarnation = new_incarnation()
    listening = around.listening
    return WorkerIdentity(
        worker_id=life.worker_id or f"{life.role.value}-{incarnation[:8]}",
        incarnation=incarnation,
        role=life.role,
        host=listening.host,
        port=listening.port,
        advertise=listening.advertise,
    )
