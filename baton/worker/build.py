"""Choosing and making what computes and what moves KV; heavy packages load only here."""

import importlib
from socket import gethostname
from types import ModuleType

from baton.compute import ComputeOptions
from baton.config import Config
from baton.engine.base import Engine
from baton.errors import StartupError
from baton.kv.external import EngineTransport
from baton.kv.layered import LayeredWire
from baton.kv.samehost import SameHostWire
from baton.kv.transfer import KvTransport
from baton.kv.wired import WiredTransport
from baton.latency import CHUNK_TOKENS
from baton.models import model_dir
from baton.rpc.server import EVERYWHERE, Listening
from baton.state.records import WorkerRole

_MIB = 1 << 20
_LOOPBACK = Listening("127.0.0.1", 0, "", "")


def build_engine(
    config: Config,
    compute: ComputeOptions,
    role: WorkerRole = WorkerRole.DECODE,
    listening: Listening = _LOOPBACK,
) -> Engine:
    """Returns the configured engine, not started. `listening` is where its worker listens.

    Raises StartupError when it is not installed or the model's directory is incomplete.
    """
    if config.engine.kind == "simulated":
        return _build_simulated(config, compute)
    directory = model_dir(config.model)
    if config.engine.kind == "sglang":
        return _build_sglang(config, compute, role, listening)
    torch_engine = _load("baton.engine.torch")
    options = torch_engine.TorchEngineOptions(
        model_dir=str(directory),
        kv_memory_bytes=config.cache.kv_memory_mib * _MIB,
        host_memory_bytes=config.cache.host_memory_mib * _MIB,
        block_size=config.cache.block_size,
        device=compute.device,
        dtype=compute.dtype,
        token_budget=compute.token_budget,
        tpot_target_s=config.qos.tpot_slo_ms / 1e3,
        ttft_target_s=config.qos.ttft_slo_ms / 1e3,
        reuse_prefix=config.cache.reuse_prefix,
    )
    engine: Engine = torch_engine.TorchEngine(options)
    return engine


def build_transport(config: Config, incarnation: str) -> KvTransport:
    """Returns the transport between processes that fits the engine, not started."""
    if config.engine.kind == "simulated":
        simulated: KvTransport = _load("baton.kv.simulated").SimulatedTransport(incarnation)
        return simulated
    if config.engine.kind == "sglang":
        return EngineTransport(incarnation, "sglang/nixl")
    wire = LayeredWire(SameHostWire(incarnation), _load("baton.kv.nixl").NixlWire(incarnation))
    return WiredTransport(incarnation, wire)


def _build_simulated(config: Config, compute: ComputeOptions) -> Engine:
    simulated = _load("baton.engine.simulated")
    options = simulated.SimulatedOptions(
        spec=simulated.load_spec(config.model),
        kv_memory_bytes=config.cache.kv_memory_mib * _MIB,
        block_size=config.cache.block_size,
        token_budget=compute.token_budget or CHUNK_TOKENS,
        reuse_prefix=config.cache.reuse_prefix,
    )
    engine: Engine = simulated.SimulatedEngine(options)
    return engine


def _build_sglang(
    config: Config, compute: ComputeOptions, role: WorkerRole, listening: Listening
) -> Engine:
    sglang = _load("baton.engine.sglang", "sglang")
    is_aggregated = compute.aggregated and role is WorkerRole.DECODE
    chosen: dict[str, object] = {}
    if compute.device != "auto":
        chosen["device"] = compute.device
    if compute.dtype != "auto":
        chosen["dtype"] = compute.dtype
    if compute.token_budget is not None:
        chosen["chunked_prefill_size"] = compute.token_budget
    options = sglang.SglangOptions(
        model_dir=str(model_dir(config.model)),
        role=sglang.AGGREGATED if is_aggregated else role.value,
        block_size=config.cache.block_size,
        kv_memory_bytes=config.cache.kv_memory_mib * _MIB,
        host=listening.host,
        reachable=_reachable(listening),
        reuse_prefix=config.cache.reuse_prefix,
        arguments={**config.engine.sglang, **chosen, **compute.engine_arguments()},
    )
    engine: Engine = sglang.SglangEngine(options)
    return engine


def _reachable(listening: Listening) -> str:
    """Returns the host that peers use for this worker."""
    advertised, _, _ = listening.advertise.rpartition(":")
    everywhere = listening.host in EVERYWHERE
    return advertised or (gethostname() if everywhere else listening.host)


def _load(module: str, extra: str = "worker") -> ModuleType:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise StartupError(
            f"a worker needs the extra `{extra}`: pip install 'baton[{extra}]' ({error})"
        ) from error
