"""Decisions and outcomes as messages."""

from baton.rpc.status import duration
from baton.v1 import router_pb2
from services.router.explanations import Explanation, Outcome, Placed
from services.router.policy import DecodeView, Option, PrefillView, Score


def explanation_message(request_id: str, explanation: Explanation) -> router_pb2.ExplainResponse:
    """Returns all that is known of a request."""
    message = router_pb2.ExplainResponse(
        request_id=request_id,
        decisions=[decision_message(placed) for placed in explanation.placements],
    )
    if explanation.outcome is not None:
        message.outcome.CopyFrom(_outcome(explanation.outcome))
    return message


def decision_message(placed: Placed) -> router_pb2.RoutingDecision:
    """Returns one placement."""
    decision = placed.decision
    message = router_pb2.RoutingDecision(
        policy=decision.policy,
        prompt_tokens=placed.prompt_tokens,
        decode=_worker(decision.decode, decision.decode_scores),
        prefill_candidates=[
            _worker(view, decision.prefill_scores) for view in decision.prefill_candidates
        ],
        chosen=_option(decision.chosen) if decision.chosen is not None else None,
        options=[_option(option) for option in decision.options],
    )
    message.decided_at.FromNanoseconds(round(placed.at_s * 1e9))
    return message


def _worker(view: PrefillView | DecodeView, scores: tuple[Score, ...]) -> router_pb2.RoutedWorker:
    totals = [score.total for score in scores if score.worker_id == view.worker_id]
    return router_pb2.RoutedWorker(
        worker_id=view.worker_id,
        incarnation=view.incarnation,
        address=view.address,
        cached_tokens=view.cached_tokens,
        queue_length=view.queue_length,
        score=totals[0] if totals else None,
    )


def _option(option: Option) -> router_pb2.RoutingOption:
    terms = option.terms
    return router_pb2.RoutingOption(
        prefill_worker_id=option.prefill.worker_id if option.prefill is not None else "",
        decode_worker_id=option.decode.worker_id,
        wait=duration(terms.wait_s),
        prefill=duration(terms.prefill_s),
        transfer=duration(terms.transfer_s),
        admit=duration(terms.admit_s),
        tpot=duration(terms.tpot_s),
        interference=duration(terms.interference_s),
        cost=duration(option.cost_s),
    )


def _outcome(outcome: Outcome) -> router_pb2.RoutingOutcome:
    message = router_pb2.RoutingOutcome(
        error_type=outcome.error_type,
        placement=outcome.placement,
        cached_tokens=outcome.cached_tokens,
        prediction_error=outcome.prediction_error,
    )
    times = {
        "ttft": outcome.ttft_s,
        "tpot": outcome.tpot_s,
        "local_ttft": outcome.local_ttft_s,
        "remote_ttft": outcome.remote_ttft_s,
    }
    for name, seconds in times.items():
        if seconds is not None:
            getattr(message, name).CopyFrom(duration(seconds))
    return message
