"""`make bench-policies`: what each routing policy makes of a real conversation trace, in a mesh.

Real router and admission processes, eight simulated workers that compute what they do not have in
their caches. Arrivals and shared prefixes are those of Mooncake's conversation trace. Its blocks of
512 tokens become one KV block of 16, and its lengths shrink likewise, so that one machine can
replay it; a token takes a worker correspondingly longer. Every policy gets the same requests at the
same moments, on a fresh mesh that first measured its costs on other prompts. The best possible hit
rate is that of one cache as large as all pools together, in front of all requests.
"""

import asyncio
import contextlib
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Annotated, Any, NamedTuple

import typer
import uvloop
from matplotlib.figure import Figure

from baton.client import RouterClient
from baton.errors import InvalidRequestError
from baton.rpc.link import Link
from baton.rpc.links import ROUTER_LINK
from baton.v1 import router_pb2, types_pb2
from bench.drive import percentiles_ms
from bench.mesh import MeshPlan, running_mesh
from bench.prompts import VOCAB
from bench.report import emit, note, steps
from sim.results.ideal import Profile, profile
from sim.traces.mooncake import BLOCK_TOKENS, MooncakeTrace
from sim.workload import SimRequest

POLICIES = ("latency", "weighted", "least_loaded", "round_robin")
WORKERS = 8
KV_BLOCK = 16
KV_MIB = 64
KV_BYTES_PER_TOKEN = 2048
TOKEN_US = 1300.0
STEP_MS = 8.0
_SHRINK = BLOCK_TOKENS // KV_BLOCK
_LONGEST_TOKENS = 7000
_WARM_PROMPTS = 480
_WARM_CONCURRENCY = 16
_TIMEOUT_S = 120.0
_TRACE_ID = "trace-"


class Prediction(NamedTuple):
    """A TTFT as it was predicted at the placement, and as it came. Seconds."""

    predicted_s: float
    actual_s: float

    @property
    def error(self) -> float:
        """The error as a share of what came."""
        return abs(self.predicted_s - self.actual_s) / max(self.actual_s, 1e-9)


@dataclass(slots=True)
class Replayed:
    """One request's end. Times in seconds; `ttft_s` is None when it failed."""

    prompt_tokens: int
    cached_tokens: int = 0
    ttft_s: float | None = None
    error: str = ""


class _Receiver:
    """Writes down one answer; see baton.rpc.link.Receiver."""

    def __init__(self, replayed: Replayed) -> None:
        self._replayed = replayed
        self._sent_s = time.monotonic()
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def deliver(self, event: Any, kind: str) -> None:
        if kind == "complete":
            self._replayed.cached_tokens = event.complete.usage.cached_tokens
        elif self._replayed.ttft_s is None:
            self._replayed.ttft_s = time.monotonic() - self._sent_s

    def end(self, error: Any) -> None:
        self._replayed.error = error.reason if error is not None else ""
        self.ended.set_result(None)


def shrunk(trace: Path, requests: int, rate_per_s: float) -> list[SimRequest]:
    """Returns the trace's first requests in KV blocks of this mesh, at `rate_per_s` on average."""
    recorded = list(islice(MooncakeTrace(trace).requests(seed=1), requests))
    stretch = requests / rate_per_s / recorded[-1].arrival_s
    return [
        SimRequest(
            arrival_s=it.arrival_s * stretch,
            prompt_tokens=max(1, min(it.prompt_tokens // _SHRINK, _LONGEST_TOKENS)),
            output_tokens=max(1, it.output_tokens // _SHRINK),
            hashes=it.hashes[: _LONGEST_TOKENS // KV_BLOCK],
        )
        for it in recorded
    ]


def prompt_of(request: SimRequest, number: int) -> list[int]:
    """Returns token ids whose blocks are equal where the trace's are."""
    ids: list[int] = []
    for block in request.hashes:
        high, low = divmod(block, VOCAB - 1)
        ids += [low + 1, high % (VOCAB - 1) + 1, *range(1, KV_BLOCK - 1)]
    high, low = divmod(number, VOCAB - 1)
    tail = [low + 1, high + 1, *([7] * KV_BLOCK)]
    return (ids + tail * (request.prompt_tokens // len(tail) + 1))[: request.prompt_tokens]


def warm_prompts() -> Iterator[list[int]]:
    """Yields prompts of several lengths that share nothing with the trace or each other."""
    for number in range(_WARM_PROMPTS):
        high, low = divmod(number, VOCAB - 1)
        yield [VOCAB - 1, low + 1, high + 1, *([9] * (32 * (1 + number % 12)))]


class Mesh:
    """A link to a running mesh's router."""

    def __init__(self, address: str) -> None:
        self._link: Link[router_pb2.RouterCommand, router_pb2.RouterEvent] = Link(
            ROUTER_LINK, address
        )

    async def ask(self, ids: Sequence[int], output_tokens: int, request_id: str = "") -> Replayed:
        """Sends one request and returns what became of it."""
        sampling = types_pb2.SamplingParams(
            max_tokens=output_tokens, temperature=0.0, ignore_eos=True
        )
        start = router_pb2.GenerateRequest(
            request_id=request_id, input_ids=ids, sampling_params=sampling
        )
        replayed = Replayed(len(ids))
        receiver = _Receiver(replayed)
        self._link.open(
            router_pb2.RouterCommand(start=start), timeout_s=_TIMEOUT_S, receiver=receiver
        )
        await receiver.ended
        return replayed

    async def warm_up(self) -> None:
        """Lets every worker measure its costs."""
        prompts = warm_prompts()

        async def client() -> None:
            for ids in prompts:
                await self.ask(ids, 8)

        await asyncio.gather(*(client() for _ in range(_WARM_CONCURRENCY)))

    async def replay(self, requests: Sequence[SimRequest]) -> list[Replayed]:
        """Sends every request at its moment, whatever became of those before."""
        prompts = [prompt_of(request, number) for number, request in enumerate(requests)]
        running: list[asyncio.Future[Replayed]] = []
        begun_s = time.monotonic()
        for request, ids in zip(requests, prompts, strict=True):
            await asyncio.sleep(begun_s + request.arrival_s - time.monotonic())
            name = f"{_TRACE_ID}{len(running)}"
            running.append(asyncio.ensure_future(self.ask(ids, request.output_tokens, name)))
        return list(await asyncio.gather(*running))

    async def close(self) -> None:
        """Closes the link."""
        await self._link.close()


async def predictions(address: str, requests: int) -> list[Prediction]:
    """Returns what the router predicted for the requests of the trace, and what came of it."""
    found = []
    async with RouterClient(address) as client:
        for number in range(requests):
            with contextlib.suppress(InvalidRequestError):  # forgotten, if it was long ago
                explained = await client.explain(f"{_TRACE_ID}{number}")
                chosen, outcome = explained.decisions[0].chosen, explained.outcome
                if outcome.HasField("prediction_error"):
                    found.append(Prediction(_ttft_s(chosen), outcome.ttft.ToNanoseconds() / 1e9))
    return found


def _ttft_s(option: router_pb2.RoutingOption) -> float:
    parts = (option.wait, option.prefill, option.transfer, option.admit)
    return sum(part.ToNanoseconds() for part in parts) / 1e9


def plot(found: Sequence[Prediction], path: Path) -> None:
    """Draws predicted against actual TTFT, and how often the error is how large."""
    figure = Figure(figsize=(10, 4.5), layout="tight")
    scatter, error = figure.subplots(1, 2)
    longest_s = max(max(it) for it in found)
    scatter.plot([0, longest_s], [0, longest_s], color="grey", linewidth=1)
    scatter.scatter([it.actual_s for it in found], [it.predicted_s for it in found], s=6)
    scatter.set(xlabel="actual TTFT (s)", ylabel="predicted TTFT (s)")
    errors = sorted(it.error for it in found)
    shares = [(at + 1) / len(errors) for at in range(len(errors))]
    error.plot(errors, shares)
    error.set(xlabel="|predicted - actual| / actual", ylabel="share of requests", xlim=(0, 1.5))
    for kind in (".png", ".svg"):
        figure.savefig(path.with_suffix(kind), dpi=110)


async def measure(
    policy: str, prefill: int, requests: Sequence[SimRequest], directory: Path
) -> tuple[list[Replayed], list[Prediction]]:
    """Replays the requests on a fresh mesh that routes by `policy`."""
    pace = ("--step-ms", str(STEP_MS), "--prefill-token-us", str(TOKEN_US), "--transfer-ms", "1")
    settings = {
        "BATON_SPLIT_POLICY__POLICY": policy,
        "BATON_QOS__ENABLE_EARLY_REJECTION": "false",
    }
    plan = MeshPlan(
        prefill=prefill,
        decode=WORKERS - prefill,
        pace=(*pace, "--kv-mib", str(KV_MIB)),
        settings=settings,
    )
    async with running_mesh(plan, directory) as running:
        mesh = Mesh(running.router_address)
        try:
            await mesh.warm_up()
            replayed = await mesh.replay(requests)
            return replayed, await predictions(running.router_address, len(requests))
        finally:
            await mesh.close()


def summed(replayed: Sequence[Replayed], best: Profile) -> dict[str, Any]:
    """Returns what a replay showed."""
    well = [it for it in replayed if not it.error and it.ttft_s is not None]
    prompt = sum(it.prompt_tokens for it in well)
    hit_rate = sum(it.cached_tokens for it in well) / max(1, prompt)
    ttft_ms = percentiles_ms([it.ttft_s for it in well if it.ttft_s is not None])
    return {
        "requests": len(replayed),
        "errors": len(replayed) - len(well),
        "ttft_ms": ttft_ms,
        "hit_rate": round(hit_rate, 4),
        "hit_share_of_best": round(hit_rate / best.ideal_at_size, 4),
    }


def figures(results: dict[str, dict[str, Any]]) -> dict[str, float | None]:
    """Returns the default policy's figures, and the best other one's TTFT as its multiple."""
    own = results["latency"]
    others = [result for name, result in results.items() if name != "latency"]
    quotients = {
        share: min(it["ttft_ms"][share] for it in others) / own["ttft_ms"][share]
        if others
        else None
        for share in ("p50", "p99")
    }
    return {
        "ttft_p50_ms": own["ttft_ms"]["p50"],
        "ttft_p99_ms": own["ttft_ms"]["p99"],
        "best_other_p50_over_latency": quotients["p50"],
        "best_other_p99_over_latency": quotients["p99"],
        "hit_rate": own["hit_rate"],
        "hit_share_of_best": own["hit_share_of_best"],
        "prediction_error_p50": own.get("prediction_error_p50"),
    }


def main() -> None:
    """Runs the command line."""
    typer.run(_command)


def _command(
    trace: Annotated[Path | None, typer.Option(help="Mooncake's conversation trace.")] = None,
    requests: Annotated[int, typer.Option(help="Requests of the trace.")] = 1200,
    rate: Annotated[float, typer.Option(help="Requests per second on average.")] = 12.0,
    prefill: Annotated[int, typer.Option(help="Prefill workers among the eight.")] = 0,
    policies: Annotated[str, typer.Option(help="Policies, by commas.")] = ",".join(POLICIES),
    plots: Annotated[Path | None, typer.Option(help="Folder for a plot of the error.")] = None,
    record: Annotated[bool, typer.Option(help="Keep the result in bench/results.")] = False,
) -> None:
    """Replay a trace under each policy."""
    traces = Path(os.environ.get("BATON_TRACES", "traces"))
    path = trace or traces / "mooncake" / "conversation_trace.jsonl"
    if not path.is_file():
        note(f"{path} is missing: give --trace or set BATON_TRACES")
        raise typer.Exit(2)
    work = shrunk(path, requests, rate)
    pools = WORKERS * KV_MIB * (1 << 20) // KV_BYTES_PER_TOKEN
    best = profile(work, KV_BLOCK, pools)
    note(f"best hit rate {best.ideal_at_size:.3f}, without bound {best.ideal_hit_rate:.3f}")
    results: dict[str, dict[str, Any]] = {}
    for policy in steps(policies.split(","), "policies"):
        with tempfile.TemporaryDirectory() as temporary:
            replayed, predicted = uvloop.run(measure(policy, prefill, work, Path(temporary)))
        results[policy] = summed(replayed, best)
        if predicted:
            results[policy]["prediction_error_p50"] = median(it.error for it in predicted)
            if plots is not None:
                plot(predicted, plots / "prediction-error.png")
        note(f"{policy:14} {results[policy]}")
    details = {
        "workers": {"prefill": prefill, "decode": WORKERS - prefill},
        "requests_per_s": rate,
        "best_hit_rate": best.ideal_at_size,
        "policies": results,
    }
    emit("bench-policies", figures(results), details, record)


if __name__ == "__main__":
    main()
