"""A decode worker: `python -m services.decode.main`."""

import typer

from baton.compute import ComputeOptions, Device, Dtype, TokenBudget
from baton.config import Config
from baton.latency import CHUNK_TOKENS
from baton.process import Advertise, ConfigFile, Host, Name, Port, ProcessOptions
from baton.state.records import WorkerRole
from baton.worker.command import run_worker
from baton.worker.parts import WorkerParts
from services.decode.peers import Peers
from services.decode.policy import PredictiveSplitPolicy, SplitPolicy, ThresholdSplitPolicy
from services.decode.record import JobRecorder
from services.decode.remote import RemotePrefiller
from services.decode.reservations import QUARANTINE_S, Reservations
from services.decode.server import DecodeServer
from services.decode.worker import DecodeWorker

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
) -> None:
    """Generate tokens for the fleet's routers until told to stop."""
    run_worker(
        WorkerRole.DECODE,
        ProcessOptions(config, host, port, name, advertise),
        ComputeOptions(device, dtype, token_budget),
        build_service,
    )


def build_service(parts: WorkerParts, quarantine_s: float = QUARANTINE_S) -> DecodeServer:
    """Returns the service of a decode worker, wired."""
    policy = make_split_policy(parts.config)
    reservations = Reservations(parts.engine, parts.transport, quarantine_s)
    peers = Peers(parts.engine, parts.transport, reservations)
    remote = RemotePrefiller(parts.transport, peers, reservations)
    worker = DecodeWorker(parts.worker_id, parts.engine, policy, remote, parts.costs)
    recorder = JobRecorder(parts.worker_id, parts.telemetry)
    return DecodeServer(parts, worker, peers, remote, reservations, recorder)


def make_split_policy(config: Config) -> SplitPolicy:
    """Returns the rule that goes with the router's policy.

    The router that predicts and the decode workers must mean the same, and baselines are compared
    with the chapter's rule; so one setting chooses both.
    """
    split, qos = config.split_policy, config.qos
    threshold = ThresholdSplitPolicy(split.prompt_length_threshold, split.prefill_queue_max)
    if split.policy != "latency":
        return threshold
    price = qos.ttft_slo_ms / qos.tpot_slo_ms
    return PredictiveSplitPolicy(threshold, price, CHUNK_TOKENS)


def main() -> None:
    """Runs the command line."""
    app()


if __name__ == "__main__":
    main()
