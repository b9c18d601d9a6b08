"""How many workers a load needs under the SLO, from what computing costs. Pure.

Prefill workers are servers of one queue: the wait of an M/G/m queue by Sakasegawa's approximation
(Annals of the Institute of Statistical Mathematics 29, 1977) must leave room for the prompt's own
computing. A decode worker holds as many sequences as its step time allows under the TPOT limit
and its KV pool allows at all; their number fluctuates like a Poisson variable.
"""

import math
from dataclasses import dataclass

from baton.latency import CostModel
from services.autoscaler.demand import Load

TAIL = 2.0
"""The limit holds for a wait of this many means: 86 % of exponential ones, and most wait less than
at the forecast's load, which has headroom."""

VARIABILITY = 1.5
"""Mean of the squared coefficients of variation of gaps and prompt lengths within minutes."""

SLO_MARGIN = 0.9
"""Share of a limit that is planned with."""

KV_MARGIN = 0.85
"""Share of a KV pool that running sequences may fill by plan."""

_MOST_SEQUENCES = 1024.0


@dataclass(frozen=True, slots=True)
class Slo:
    """Limits in seconds."""

    ttft_s: float
    tpot_s: float


def prefill_workers(load: Load, costs: CostModel, slo: Slo, most: int) -> int:
    """Returns the fewest prefill workers under which the remote prompts meet the TTFT limit.

    More than `most` are not told apart: the answer is then larger than `most`.
    """
    work = load.remote_work(costs)
    if work <= 0:
        return 0
    service_s = costs.prefill_s(round(load.remote_tokens), 0)
    room_s = max(SLO_MARGIN * slo.ttft_s - service_s, 0.1 * slo.ttft_s)
    workers = math.floor(work) + 1
    while workers <= most and TAIL * wait_s(workers, work, service_s) > room_s:
        workers += 1
    return workers


def wait_s(workers: int, work: float, service_s: float) -> float:
    """Returns the mean wait where `work` seconds of work arrive per second; `work` < `workers`."""
    share = work / workers
    queue: float = share ** (math.sqrt(2 * (workers + 1)) - 1) / (workers * (1 - share))
    return VARIABILITY * queue * service_s


def sequences_per_worker(load: Load, costs: CostModel, slo: Slo, kv_tokens: int) -> float:
    """Returns how many sequences a decode worker holds under the TPOT limit; at least one."""
    base, each, token = costs.step
    per_sequence_s = each + token * load.context_tokens
    room_s = SLO_MARGIN * slo.tpot_s - base
    by_time = room_s / per_sequence_s if per_sequence_s > 0 else _MOST_SEQUENCES
    by_kv = math.inf
    if kv_tokens:
        by_kv = KV_MARGIN * kv_tokens / max(1.0, load.context_tokens + load.output_tokens / 2)
    return max(1.0, min(by_time, by_kv, _MOST_SEQUENCES))


def decode_share(load: Load, costs: CostModel, slo: Slo, kv_tokens: int) -> float:
    """Returns how many decode workers the answers and the local prompts keep busy."""
    most = sequences_per_worker(load, costs, slo, kv_tokens)
    step_s = costs.step_s(round(most), round(most * load.context_tokens))
    held = load.output_per_s * step_s
    return (held + 2 * math.sqrt(held)) / most + load.local_work(costs)


def decode_workers(load: Load, costs: CostModel, slo: Slo, kv_tokens: int) -> int:
    """Returns the fewest decode workers that generate the answers under the TPOT limit.

    Prompts that stay local take their time from the same workers.
    """
    return math.ceil(decode_share(load, costs, slo, kv_tokens) - 1e-9)


def backlog_workers(
    backlog_s: float, work: float, ready: int, start_s: float, recover_s: float
) -> int:
    """Returns how many workers end a backlog within `recover_s` after new ones are ready.

    `backlog_s` seconds of work wait and `work` seconds arrive per second; `ready` workers go on
    meanwhile. No more than `ready` when they alone are done before anybody else can help.
    """
    left_s = backlog_s + (work - ready) * start_s
    if left_s <= ready * recover_s * max(0.0, 1 - work / max(1, ready)):
        return ready
    return math.ceil(work + left_s / recover_s)
