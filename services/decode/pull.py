"""Pulling a prefix from another worker's cache: decided once, before local or remote prefill. Pure.

A prefix is pulled when moving it and then computing the rest, the better way of local and remote,
is predicted to take less than computing without it. All of it comes from measurements: what a pull
of so many bytes takes is fitted from earlier pulls, and while prompts were not measured nothing is
pulled. So there is no threshold to set; where the two costs cross follows from the machine.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from baton.latency import CostModel
from services.decode.policy import SplitDecision


@dataclass(frozen=True, slots=True)
class PullPlan:
    """Pull until `tokens` of the prompt are here, from the holder at `index`.

    `saved_s` is how much sooner the first token is predicted.
    """

    index: int
    tokens: int
    saved_s: float


def plan_pull(
    prompt_tokens: int,
    cached_tokens: int,
    held_tokens: Sequence[int],
    block_size: int,
    seconds_with: Callable[[int], float | None],
    pull_s: Callable[[int], float],
) -> PullPlan | None:
    """Returns what to pull, or None when computing is predicted to be no slower.

    `held_tokens` is what each holder has. `seconds_with` predicts the time to the first token when
    so many tokens are cached here, `pull_s` the time of pulling so many tokens.
    """
    now_s = seconds_with(cached_tokens)
    if now_s is None:
        return None
    # The last token is computed wherever the rest comes from: somebody needs its logits.
    longest = (prompt_tokens - 1) // block_size * block_size
    plans = []
    for index, held in enumerate(held_tokens):
        tokens = min(held // block_size * block_size, longest)
        if tokens <= cached_tokens:
            continue
        then_s = seconds_with(tokens)
        assert then_s is not None
        saved_s = now_s - then_s - pull_s(tokens - cached_tokens)
        plans.append(PullPlan(index, tokens, saved_s))
    best = max(plans, key=lambda plan: plan.saved_s, default=None)
    return best if best is not None and best.saved_s > 0 else None


def predicted_s(
    decision: SplitDecision, costs: CostModel, prompt_tokens: int, cached_tokens: int
) -> float | None:
    """Returns the seconds to the first token by the better way, None while unmeasured."""
    if not costs.knows_prefill:
        return None
    predicted = decision.prediction
    if predicted is None:
        return costs.prefill_s(prompt_tokens - cached_tokens, cached_tokens)
    local_s = predicted.local_ttft_s + predicted.interference_s
    return min(local_s, predicted.remote_ttft_s)
