"""A decode worker: `python -m services.decode.main`."""

import typer

from baton.compute import Aggregated, ComputeOptions, Device, Dtype, EngineArguments, TokenBudget
from baton.config import Config
from baton.engine.rooms import as_room_engine
from baton.latency import CHUNK_TOKENS
from baton.process import Advertise, ConfigFile, Host, Name, Port, ProcessOptions
from baton.state.records import WorkerRole
from baton.worker.command import run_worker
from baton.worker.kv_source import KvSource
from baton.worker.parts import WorkerParts
from baton.worker.readers import Readers
from services.decode.kinds import BlockUpkeep
from services.decode.legs import Legs
from services.decode.peers import Peers
from services.decode.policy import PredictiveSplitPolicy, SplitPolicy, ThresholdSplitPolicy
from services.decode.record import JobRecorder
from services.decode.remote import RemotePrefiller
from services.decode.reservations import QUARANTINE_S, Reservations
from services.decode.room_pairs import RoomPairs
from services.decode.room_worker import RoomDecodeWorker, RoomUpkeep
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
    engine_argument: EngineArguments = None,
    aggregated: Aggregated = False,
) -> None:
    """Generate tokens for the fleet's routers until told to stop."""
    run_worker(
        WorkerRole.DECODE,
        ProcessOptions(config, host, port, name, advertise),
        ComputeOptions(device, dtype, token_budget, tuple(engine_argument or ()), aggregated),
        build_service,
    )


def build_service(parts: WorkerParts, quarantine_s: float = QUARANTINE_S) -> DecodeServer:
    """Returns the service of a decode worker, wired."""
    policy = make_split_policy(parts.config)
    recorder = JobRecorder(parts.worker_id, parts.telemetry)
    if (engine := as_room_engine(parts.engine)) is not None:
        pairs = RoomPairs(engine, parts.transport.agent)
        legs = Legs(engine, pairs)
        runner = RoomDecodeWorker(parts.worker_id, engine, policy, legs, parts.costs)
        return DecodeServer(parts, runner, RoomUpkeep(engine, pairs, legs), recorder)
    reservations = Reservations(parts.engine, parts.transport, quarantine_s)
    reservations.observe(parts.telemetry)
    peers = Peers(parts.engine, parts.transport, reservations)
    remote = RemotePrefiller(parts.transport, peers, reservations)
    worker = DecodeWorker(parts.worker_id, parts.engine, policy, remote, parts.costs)
    readers = Readers(parts.transport)
    upkeep = BlockUpkeep(peers, remote, reservations, readers)
    return DecodeServer(parts, worker, upkeep, recorder, KvSource(parts, readers))


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
