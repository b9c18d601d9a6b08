"""`baton explain REQUEST_ID`: why a request went where it went, and what came of it."""

import asyncio
import json
from typing import Annotated, Any

import typer
from google.protobuf import json_format
from rich.console import Console
from rich.table import Table

from baton.cli.common import JsonOption, RouterOption, reporting, router_address
from baton.client import RouterClient
from baton.v1 import router_pb2, types_pb2

_TABLE_WIDTH = 120
_TERMS = ("wait", "prefill", "transfer", "admit", "tpot", "interference", "cost")
_TTFT_TERMS = ("wait", "prefill", "transfer", "admit")


def explain(
    request_id: Annotated[str, typer.Argument(help="The request's name, as it was answered.")],
    router: RouterOption = None,
    as_json: JsonOption = False,
) -> None:
    """Explain where a request went: the options, their predicted times, and the outcome."""
    with reporting():
        response = asyncio.run(_fetch(router_address(router), request_id))
        if as_json:
            typer.echo(json.dumps(json_format.MessageToDict(response)))
        else:
            show(response)


async def _fetch(address: str, request_id: str) -> router_pb2.ExplainResponse:
    async with RouterClient(address) as client:
        return await client.explain(request_id)


def show(response: router_pb2.ExplainResponse) -> None:
    """Prints each placement as a table, and the outcome."""
    console = Console()
    console.width = max(console.width, _TABLE_WIDTH)  # better wrapped by the terminal than cut
    for number, decision in enumerate(response.decisions, 1):
        tries = f" (attempt {number})" if len(response.decisions) > 1 else ""
        typer.echo(
            f"{response.request_id}{tries}: {decision.prompt_tokens} tokens, "
            f"policy {decision.policy}, decode worker {decision.decode.worker_id}"
        )
        if decision.options:
            console.print(options_table(decision))
        else:
            console.print(workers_table(decision))
    typer.echo(outcome_text(response))


def options_table(decision: router_pb2.RoutingDecision) -> Table:
    """Returns one row per option, with its terms in milliseconds; the chosen one is marked."""
    table = Table(box=None, pad_edge=False)
    for heading in ("", "prefill", "decode"):
        table.add_column(heading, no_wrap=True)
    for heading in ("TTFT ms", *(f"{term} ms" for term in _TERMS)):
        table.add_column(heading, justify="right", no_wrap=True)
    for option in decision.options:
        ttft_ms = sum(_ms(getattr(option, term)) for term in _TTFT_TERMS)
        table.add_row(
            ">" if option == decision.chosen else "",
            option.prefill_worker_id or "local",
            option.decode_worker_id,
            f"{ttft_ms:.1f}",
            *(f"{_ms(getattr(option, term)):.1f}" for term in _TERMS),
        )
    return table


def workers_table(decision: router_pb2.RoutingDecision) -> Table:
    """Returns one row per worker, for policies that predict nothing."""
    table = Table(box=None, pad_edge=False)
    for heading in ("role", "worker", "waiting", "cached tokens", "points"):
        table.add_column(heading, no_wrap=True)
    roles = ["decode", *["prefill"] * len(decision.prefill_candidates)]
    workers = [decision.decode, *decision.prefill_candidates]
    for role, worker in zip(roles, workers, strict=True):
        points = f"{worker.score:.1f}" if worker.HasField("score") else "-"
        waiting, cached = str(worker.queue_length), str(worker.cached_tokens)
        table.add_row(role, worker.worker_id, waiting, cached, points)
    return table


def outcome_text(response: router_pb2.ExplainResponse) -> str:
    """Returns what came of the request, in one or two lines."""
    if not response.HasField("outcome"):
        return "outcome: still running"
    outcome = response.outcome
    facts = [outcome.error_type or "ok"]
    if outcome.HasField("placement"):
        placement = outcome.placement
        mode = types_pb2.PrefillMode.Name(placement.prefill_mode).rpartition("_")[2].lower()
        facts.append(f"{mode} prefill on {placement.prefill_worker_id}")
        facts.append(f"reason {placement.prefill_reason}")
        facts.append(f"{outcome.cached_tokens} tokens cached")
    if outcome.HasField("ttft"):
        facts.append(f"TTFT {_ms(outcome.ttft):.1f} ms from the placement")
    if outcome.HasField("tpot"):
        facts.append(f"TPOT {_ms(outcome.tpot):.1f} ms")
    if outcome.HasField("prediction_error"):
        facts.append(f"prediction off by {100 * outcome.prediction_error:.0f} %")
    if outcome.HasField("local_ttft"):
        local, remote = _ms(outcome.local_ttft), _ms(outcome.remote_ttft)
        facts.append(f"the decode worker predicted {local:.1f} ms local, {remote:.1f} ms remote")
    return f"outcome: {', '.join(facts)}"


def _ms(duration: Any) -> float:
    return float(duration.ToNanoseconds()) / 1e6
