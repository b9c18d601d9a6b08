"""A prefill worker: `python -m services.prefill.main`."""

import typer

from baton.compute import ComputeOptions, Device, Dtype, EngineArguments, TokenBudget
from baton.process import Advertise, ConfigFile, Host, Name, Port, ProcessOptions
from baton.state.records import WorkerRole
from baton.worker.command import run_worker
from baton.worker.parts import WorkerParts
from baton.worker.readers import Readers
from services.prefill.server import PrefillServer
from services.prefill.worker import PrefillWorker

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def serve(
    config: ConfigFile = None,
    host: Host = "",
    port: Port = None,
    name: Name = "",
    advertise: Advertise = "",
    device: Device = "auto",
    dtype: Dtype = "auto",
    token_budget: TokenBudget = None,
    engine_argument: EngineArguments = None,
) -> None:
    """Compute prompts for the fleet's decode workers until told to stop."""
    run_worker(
        WorkerRole.PREFILL,
        ProcessOptions(config, host, port, name, advertise),
        ComputeOptions(device, dtype, token_budget, tuple(engine_argument or ())),
        build_service,
    )


def build_service(parts: WorkerParts) -> PrefillServer:
    """Returns the service of a prefill worker, wired."""
    worker = PrefillWorker(
        parts.worker_id,
        parts.engine,
        parts.telemetry,
        parts.config.split_policy.prefill_queue_max,
    )
    return PrefillServer(parts, worker, Readers(parts.transport))


def main() -> None:
    """Runs the command line."""
    app()


if __name__ == "__main__":
    main()
