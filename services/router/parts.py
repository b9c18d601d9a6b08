"""What a router is made of: what it knows of the fleet, and what works on requests with it."""

from dataclasses import dataclass
from typing import Any

from redis.asyncio import Redis

from baton.config import Config
from baton.requests import Priority
from baton.rpc.link import LinkPool
from baton.rpc.links import ADMISSION_LINK, DECODE_LINK
from baton.rpc.pace import Pace
from baton.state.finished import FinishedLog, FinishedRequest, coarse
from baton.state.fleet import FleetView
from baton.state.prefix_index import PrefixIndex
from baton.state.records import new_incarnation
from baton.state.shared_credits import CreditExchange
from baton.state.traffic import TrafficMeter
from baton.telemetry.providers import Telemetry
from services.router.candidates import Candidates
from services.router.choice import make_policy
from services.router.credits import FleetCredits, InFlightCredits, Suspects
from services.router.dispatch import Dispatcher
from services.router.explanations import Explanations
from services.router.metrics import RouterMetrics
from services.router.model import ServedModel
from services.router.permits import PermitClient
from services.router.pipeline import Pipeline
from services.router.requests import RequestBook, RequestRecord, Targets
from services.router.sessions import Sessions

SUSPECT_S = 3.0
"""A worker that failed a request is avoided this long: its lease may outlive it by as much."""


@dataclass(frozen=True, slots=True)
class Shared:
    """What a router knows of the fleet and of its own dispatches."""

    fleet: FleetView
    index: PrefixIndex
    credits: InFlightCredits
    suspects: Suspects
    exchange: CreditExchange
    candidates: Candidates

    @classmethod
    def of(cls, redis: Redis, model: ServedModel) -> "Shared":
        """Returns it for a fleet that nobody has read yet."""
        fleet, index = FleetView(redis), PrefixIndex()
        credits, suspects = InFlightCredits(), Suspects(SUSPECT_S)
        exchange = CreditExchange(redis, new_incarnation(), credits.recent)
        candidates = Candidates(fleet, index, FleetCredits(credits, exchange), suspects, model)
        return cls(fleet, index, credits, suspects, exchange, candidates)


@dataclass(frozen=True, slots=True)
class Parts:
    """What works on requests. All links share one `pace`."""

    pace: Pace
    admission_links: LinkPool[Any, Any]
    decode_links: LinkPool[Any, Any]
    permits: PermitClient
    finished: FinishedLog
    book: RequestBook
    traffic: TrafficMeter
    metrics: RouterMetrics
    explanations: Explanations
    pipeline: Pipeline


def make_parts(
    config: Config, model: ServedModel, redis: Redis, telemetry: Telemetry, shared: Shared
) -> Parts:
    """Makes a router\'s parts; nothing of them runs yet."""
    pace, qos = Pace(), config.qos
    admission_links: LinkPool[Any, Any] = LinkPool(ADMISSION_LINK, pace=pace)
    decode_links: LinkPool[Any, Any] = LinkPool(DECODE_LINK, pace=pace)
    closed = [Priority[name.upper()] for name in qos.fail_closed]
    permits = PermitClient(shared.fleet, admission_links, closed)
    explanations, finished = Explanations(), FinishedLog(redis)
    book = RequestBook(
        Targets(qos.ttft_slo_ms / 1000, qos.tpot_slo_ms / 1000),
        on_served=lambda it: finished.add(_finished(it, shared.candidates.block_size)),
        tenants=qos.tenants,
    )
    traffic = TrafficMeter(config.split_policy.prompt_length_threshold, lambda: book.waiting)
    metrics = RouterMetrics(telemetry, model.name, explanations, book, traffic)
    dispatcher = _dispatcher(config, telemetry, shared, decode_links, explanations)
    pipeline = Pipeline(model, shared.candidates, permits, dispatcher, telemetry, metrics)
    return Parts(
        pace,
        admission_links,
        decode_links,
        permits,
        finished,
        book,
        traffic,
        metrics,
        explanations,
        pipeline,
    )


def _dispatcher(
    config: Config,
    telemetry: Telemetry,
    shared: Shared,
    links: "LinkPool[Any, Any]",
    explanations: Explanations,
) -> Dispatcher:
    split = config.split_policy
    return Dispatcher(
        candidates=shared.candidates,
        policy=make_policy(split, config.cache.min_cache_hit_ratio, config.qos),
        links=links,
        credits=shared.credits,
        suspects=shared.suspects,
        telemetry=telemetry,
        offload_above_tokens=split.prompt_length_threshold,
        explanations=explanations,
        sessions=Sessions(),
    )


def _finished(record: RequestRecord, block_size: int) -> FinishedRequest:
    generation = record.generation
    assert generation is not None
    return FinishedRequest(
        record.arrived_at_s,
        len(generation.input_ids),
        len(generation.tokens),
        coarse(generation.hashes, block_size),
    )
