"""SGLang's own servers of the same pair, asked directly and through sglang-router."""

import statistics
from pathlib import Path
from typing import Any

import aiohttp

from bench.children import ChildFailed
from bench.drive import Outcome, percentiles_ms
from bench.prompts import PromptPlan
from bench.sglang_fleet import Setup
from bench.sglang_http import HttpPair, ask_pair, ask_router, running_http_pair
from bench.sglang_load import WARM_UP, Keep, Step, Work, goodput


async def measure_rival(setup: Setup, work: Work, keep: Keep, directory: Path) -> None:
    """Keeps what sglang-router adds and serves; what needs it is None where it is missing.

    Raises ChildFailed when a server does not start or does not answer.
    """
    async with running_http_pair(setup, directory) as pair, aiohttp.ClientSession() as session:
        try:
            keep(Step("sglang-router-overhead", await _overhead(session, pair, work)))
        except (aiohttp.ClientError, TimeoutError) as error:
            raise ChildFailed(f"a server did not answer: {error!r}") from error
        if (port := pair.router_port) is not None:
            await goodput(
                work, "sglang-router", lambda prompts: _Target(session, port, prompts), keep
            )


async def _overhead(session: Any, pair: HttpPair, work: Work) -> dict[str, Any]:
    """Asks in turn directly and through the router; every prompt is new."""
    prompts, direct, routed = work.prompts(seed=11), list[Outcome](), list[Outcome]()
    for number in range(work.requests + WARM_UP):
        first, second = (Outcome(0.0), Outcome(0.0))
        await ask_pair(session, pair, prompts.ids(2 * number), work.output_tokens, first)
        if (port := pair.router_port) is not None:
            ids = prompts.ids(2 * number + 1)
            await ask_router(session, port, ids, work.output_tokens, second)
        if number >= WARM_UP:
            direct.append(first)
            routed.append(second)
    figures: dict[str, Any] = {"direct_ttft_ms": percentiles_ms([it.ttft_s for it in direct])}
    if pair.router_port is None:
        return {**figures, "router_ttft_ms": None, "overhead_p50_ms": None}
    added_s = [r.ttft_s - d.ttft_s for r, d in zip(routed, direct, strict=True)]
    return {
        **figures,
        "router_ttft_ms": percentiles_ms([it.ttft_s for it in routed]),
        "router_tpot_ms": percentiles_ms([it.tpot_s or 0.0 for it in routed]),
        "overhead_p50_ms": 1e3 * statistics.median(added_s),
    }


class _Target:
    """sglang-router under load."""

    def __init__(self, session: Any, port: int, prompts: PromptPlan) -> None:
        self._session = session
        self._port = port
        self._prompts = prompts

    async def send(self, number: int, outcome: Outcome) -> None:
        """Runs one request to its end."""
        ids, tokens = self._prompts.ids(number), self._prompts.output_tokens
        try:
            await ask_router(self._session, self._port, ids, tokens, outcome)
        except (aiohttp.ClientError, TimeoutError) as error:
            outcome.error = type(error).__name__
        if not outcome.error and outcome.tokens != tokens:
            outcome.error = "WRONG_LENGTH"

    async def close(self) -> None:
        """Does nothing: the session is the caller's."""
