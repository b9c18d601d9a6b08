"""What a router says of its fleet and requests, as plain values: times in seconds, names in words.

The console, `baton top` and `baton status --json` show these.
"""

from typing import Any

from google.protobuf.duration_pb2 import Duration

from baton.v1 import router_pb2, types_pb2

TTFT_PARTS = (
    "tokenize", "admission", "route", "decode_admit",
    "prefill_queue", "prefill_compute", "kv_transfer", "first_step",
)  # fmt: skip

_TERMS = ("wait", "prefill", "transfer", "admit", "tpot", "interference", "cost")


def fleet_values(fleet: router_pb2.GetFleetResponse) -> dict[str, Any]:
    """Returns the workers and how old the picture is."""
    return {
        "state_age_s": seconds(fleet.state_age),
        "active_requests": fleet.active_requests,
        "workers": [worker_values(worker) for worker in fleet.workers],
    }


def worker_values(worker: types_pb2.WorkerInfo) -> dict[str, Any]:
    """Returns one worker; `stats` is None before its first figures."""
    stats = worker.stats
    values: dict[str, Any] = {
        "worker_id": worker.worker_id,
        "incarnation": worker.incarnation,
        "role": role_name(worker.role),
        "address": worker.address,
        "model": worker.model,
        "transfer_backend": worker.transfer_backend,
        "stats": None,
    }
    if worker.HasField("stats"):
        names = (field.name for field in stats.DESCRIPTOR.fields if field.message_type is None)
        values["stats"] = {name: getattr(stats, name) for name in names}
        values["stats"]["kv_paths"] = dict(stats.kv_paths)
        values["stats_age_s"] = seconds(worker.stats_age)
    return values


def requests_values(listed: router_pb2.ListRequestsResponse) -> dict[str, Any]:
    """Returns the requests, the counts of those that met their targets, and the targets."""
    return {
        "requests": [request_values(request) for request in listed.requests],
        "attainment": [
            {
                "priority": word(types_pb2.Priority.Name(count.priority), "PRIORITY_"),
                "offered": count.offered,
                "met": count.met,
            }
            for count in listed.attainment
        ],
        "targets": {"ttft_s": seconds(listed.targets.ttft), "tpot_s": seconds(listed.targets.tpot)},
    }


def request_values(request: router_pb2.RequestSummary) -> dict[str, Any]:
    """Returns one request; what is not known yet is None."""
    return {
        "request_id": request.request_id,
        "arrived_at_s": request.arrived_at.ToNanoseconds() / 1e9,
        "stage": word(router_pb2.RequestStage.Name(request.stage), "REQUEST_STAGE_"),
        "priority": word(types_pb2.Priority.Name(request.priority), "PRIORITY_"),
        "tenant": request.tenant,
        "admission": request.admission_verdict,
        "error_type": request.error_type,
        "policy": request.policy,
        "prompt_tokens": request.usage.prompt_tokens,
        "cached_tokens": request.usage.cached_tokens,
        "completion_tokens": request.usage.completion_tokens,
        "placement": _placement(request),
        "timing": timing_values(request.timing) if request.HasField("timing") else None,
        "predicted_ttft_s": _optional(request, "predicted_ttft"),
        "met_targets": request.met_targets if request.HasField("met_targets") else None,
        "trace_id": request.trace_id,
    }


def timing_values(timing: types_pb2.TimingBreakdown) -> dict[str, Any]:
    """Returns the parts of the TTFT, which add up to it, and the rest."""
    return {
        "parts": {name: seconds(getattr(timing, name)) for name in TTFT_PARTS},
        "ttft_s": seconds(timing.ttft),
        "tpot_s": _optional(timing, "tpot"),
        "total_s": seconds(timing.total),
    }


def explain_values(explained: router_pb2.ExplainResponse) -> dict[str, Any]:
    """Returns the reasons of a request's placements, and what came of it."""
    return {
        "request_id": explained.request_id,
        "decisions": [_decision(decision) for decision in explained.decisions],
        "outcome": _outcome(explained.outcome) if explained.HasField("outcome") else None,
    }


def role_name(role: types_pb2.WorkerRole.ValueType) -> str:
    """Returns "prefill" or "decode"."""
    return word(types_pb2.WorkerRole.Name(role), "WORKER_ROLE_")


def word(name: str, prefix: str) -> str:
    """Returns an enum's name without its prefix, in lower case; empty for "unspecified"."""
    short = name.removeprefix(prefix).lower()
    return "" if short == "unspecified" else short


def seconds(duration: Duration) -> float:
    """Returns a duration in seconds."""
    return duration.ToNanoseconds() / 1e9


def _decision(decision: router_pb2.RoutingDecision) -> dict[str, Any]:
    return {
        "policy": decision.policy,
        "decided_at_s": decision.decided_at.ToNanoseconds() / 1e9,
        "prompt_tokens": decision.prompt_tokens,
        "decode": _routed(decision.decode),
        "prefill_candidates": [_routed(worker) for worker in decision.prefill_candidates],
        "options": [
            {
                "prefill_worker_id": option.prefill_worker_id,
                "decode_worker_id": option.decode_worker_id,
                "is_chosen": option == decision.chosen,
                **{f"{term}_s": seconds(getattr(option, term)) for term in _TERMS},
            }
            for option in decision.options
        ],
    }


def _routed(worker: router_pb2.RoutedWorker) -> dict[str, Any]:
    return {
        "worker_id": worker.worker_id,
        "cached_tokens": worker.cached_tokens,
        "queue_length": worker.queue_length,
        "score": worker.score if worker.HasField("score") else None,
    }


def _outcome(outcome: router_pb2.RoutingOutcome) -> dict[str, Any]:
    times = ("ttft", "tpot", "local_ttft", "remote_ttft")
    return {
        "error_type": outcome.error_type,
        "placement": _placement(outcome),
        "cached_tokens": outcome.cached_tokens,
        "prediction_error": (
            outcome.prediction_error if outcome.HasField("prediction_error") else None
        ),
        **{f"{name}_s": _optional(outcome, name) for name in times},
    }


def _placement(message: Any) -> dict[str, Any] | None:
    if not message.HasField("placement"):
        return None
    placement: router_pb2.Placement = message.placement
    return {
        "prefill_worker_id": placement.prefill_worker_id,
        "decode_worker_id": placement.decode_worker_id,
        "prefill_mode": word(types_pb2.PrefillMode.Name(placement.prefill_mode), "PREFILL_MODE_"),
        "prefill_reason": placement.prefill_reason,
        "kv_bytes": placement.kv_bytes,
        "migrations": placement.migrations,
    }


def _optional(message: Any, name: str) -> float | None:
    return seconds(getattr(message, name)) if message.HasField(name) else None
