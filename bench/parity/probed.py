"""What rounds of probes say of a mesh: the simulator's costs, and how workers slow each other."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

from baton.client import Completion
from bench.parity.probe import STREAM_TOKENS, Alone, Beside, Round
from sim.costs.fit import Sample, fit
from sim.costs.hardware import Hardware
from sim.costs.model import StepCosts
from sim.engine.host import Sharing


@dataclass(frozen=True, slots=True)
class Probed:
    """A mesh's workers and what is between them. Seconds.

    `overhead_s` is what of a TTFT is neither queue, prefill nor transfer; `transfer_s` is what a
    transfer adds after the last chunk. `company` is how many times as long a token takes among
    requests that come and go as the rest says.
    """

    prefill: Hardware
    decode: Hardware
    sharing: Sharing
    overhead_s: float
    transfer_s: float
    company: float = 1.0

    def among(self, company: float) -> "Probed":
        """Returns the same with steps as long as they are in company."""
        costs = self.decode.costs
        base, each, token = costs.decode
        slowed = replace(costs, decode=(company * base, company * each, company * token))
        return replace(self, decode=replace(self.decode, costs=slowed), company=company)

    def describe(self) -> str:
        """Returns everything measured, in a few lines."""
        far, here = self.prefill, self.decode
        return (
            f"prefill {_terms(far.costs.prefill)} (error {far.prefill_error:.1%}), "
            f"on the decode worker {_terms(here.costs.prefill)} ({here.prefill_error:.1%}), "
            f"a step {_terms(here.costs.decode)} ({here.decode_error or 0.0:.1%});\n"
            f"beside the other one prefill takes {self.sharing.prefill:.2f} and decoding "
            f"{self.sharing.decode:.2f} times as long; the mesh adds {1e3 * self.overhead_s:.1f} "
            f"ms to a TTFT and {1e3 * self.transfer_s:.1f} ms where KV moves, "
            f"{self.sharing.messages:.2f} times as much while a worker computes; "
            f"a token takes {self.company:.2f} times as long in company"
        )

    def figures(self) -> dict[str, Any]:
        """Returns the same as numbers, for the record."""
        return {
            "prefill_s": self.prefill.costs.prefill,
            "prefill_error": self.prefill.prefill_error,
            "local_prefill_s": self.decode.costs.prefill,
            "local_prefill_error": self.decode.prefill_error,
            "step_s": self.decode.costs.decode,
            "step_error": self.decode.decode_error,
            "prefill_beside": self.sharing.prefill,
            "decode_beside": self.sharing.decode,
            "messages_beside": self.sharing.messages,
            "company": self.company,
            "overhead_s": self.overhead_s,
            "transfer_s": self.transfer_s,
        }


def probed(rounds: Sequence[Round], budget: int, kv_tokens: int, kv_bytes: int) -> Probed:
    """Returns what some rounds say together. `budget` is the most prompt tokens of a step."""
    remote = [it for each in rounds for it in each.remote]
    local = [it for each in rounds for it in each.local]
    beside = [it for each in rounds for it in each.beside]
    overhead_s = median(_overhead_s(it.completion) for it in (*remote, *local))
    transfer_s = median(it.completion.timing.kv_transfer_s for it in remote)
    far, far_error = fit(_prefills(remote, budget))
    here, here_error = fit(_prefills(local, budget))
    steps, steps_error = fit(_steps(it for each in rounds for it in each.streams))
    prefill = StepCosts(far, steps)
    return Probed(
        Hardware("prefill worker", "probed", prefill, kv_tokens, kv_bytes, prefill_error=far_error),
        Hardware(
            "decode worker",
            "probed",
            StepCosts(here, steps),
            kv_tokens,
            kv_bytes,
            prefill_error=here_error,
            decode_error=steps_error,
        ),
        _sharing(beside, prefill, budget, overhead_s + transfer_s),
        overhead_s,
        transfer_s,
    )


def _prefills(alone: Iterable[Alone], budget: int) -> list[Sample]:
    return [
        (
            (-(-tokens // budget), tokens, tokens * tokens / 2),
            median(it.timing.prefill_compute_s for it in group),
        )
        for (_, tokens), group in _by_kind(alone).items()
    ]


def _steps(alone: Iterable[Alone]) -> list[Sample]:
    return [
        (
            (1.0, size, size * (tokens + STREAM_TOKENS / 2)),
            median(it.timing.tpot_s or 0.0 for it in group),
        )
        for (size, tokens), group in _by_kind(alone).items()
    ]


def _sharing(beside: Sequence[Beside], alone: StepCosts, budget: int, messages_s: float) -> Sharing:
    """Compares what ran together with what it takes alone; `messages_s` is all but computing."""
    prefill = median(
        it.completion.timing.prefill_compute_s / alone.prefill_s(it.prompt_tokens, 0, budget)
        for it in beside
    )
    decode = median(it.step_s / it.before_s for it in beside)
    messages = median(
        _overhead_s(it.completion) + it.completion.timing.kv_transfer_s for it in beside
    )
    return Sharing(max(1.0, prefill), max(1.0, decode), max(1.0, messages / messages_s))


def _by_kind(alone: Iterable[Alone]) -> dict[tuple[int, int], list[Completion]]:
    groups: dict[tuple[int, int], list[Completion]] = defaultdict(list)
    for sequences, tokens, completion in alone:
        groups[sequences, tokens].append(completion)
    return groups


def _overhead_s(completion: Completion) -> float:
    timing = completion.timing
    known_s = timing.prefill_queue_s + timing.prefill_compute_s + timing.kv_transfer_s
    return timing.ttft_s - known_s


def _terms(coefficients: tuple[float, float, float]) -> str:
    """Writes the constant, what a token or a stream adds, and what a pair or a held token does."""
    first, second, third = coefficients
    return f"{1e3 * first:.1f} ms, {1e6 * second:.0f} us, {1e9 * third:.0f} ns"
