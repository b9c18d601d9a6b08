"""The mesh on SGLang beside SGLang alone: `python -m bench.sglang`.

The same two engines are driven directly and through router, admission and workers, request by
request in turn, so that what the machine does meanwhile hits both alike. Then the pair is compared
with two aggregated engines behind the same router at rising load. On the CPU the figures say what
the mesh adds, and nothing about GPUs.
"""

import asyncio
import json
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
import uvloop
import yaml

from baton.client import Completion, Prompt, RequestOptions, RouterClient, Timing
from baton.engine.sglang import SglangEngine
from baton.models import DEFAULT_MODEL, model_dir
from baton.requests import SamplingParams
from bench.children import ChildFailed
from bench.drive import Outcome, percentiles_ms
from bench.load import StreamTarget
from bench.report import emit, note
from bench.sglang_fleet import (
    ROLES,
    Front,
    Setup,
    ask_alone,
    ask_pair,
    gpu_count,
    running_front,
    running_workers,
    start_all,
    write_shape,
)
from bench.sglang_load import WARM_UP, Step, Work, goodput

CPU_CONFIG = Path(__file__).parents[1] / "tools" / "sglang_cpu" / "baton.yaml"
PAIR = ("p0", "d0")
AGGREGATED = ("a0", "a1")

GPU_ARGUMENTS: Mapping[str, Any] = {
    "load_format": "dummy",
    "attention_backend": "triton",
    "sampling_backend": "pytorch",
    "mem_fraction_static": 0.85,
    "cuda_graph_max_bs_decode": 64,
    "chunked_prefill_size": 2048,
    "cuda_graph_backend_prefill": "disabled",
}


class Run:
    """One run: what it has so far is on disk at any moment."""

    def __init__(self, setup: Setup, work: Work, out: Path | None, *, rival: bool = True) -> None:
        self._rival = rival
        self._setup = setup
        self._work = work
        self._out = out
        self.steps: dict[str, Mapping[str, Any]] = {}

    def keep(self, step: Step) -> None:
        """Prints and saves the figures of a part."""
        self.steps[step.name] = step.figures
        note(f"{step.name}: {json.dumps(step.figures)}")
        if self._out is not None:
            self._out.write_text(json.dumps(self.steps, indent=1))

    async def run(self, directory: Path) -> dict[str, float | None]:
        """Measures all parts and returns the figures of the report."""
        async with running_front(self._setup, directory) as front:
            pair, pair_ids = await self._with_pair(front)
            alone, alone_ids = await self._with_aggregated(front)
        if self._rival:
            await self._with_rival(directory)
        same = [ours == theirs for ours, theirs in zip(pair_ids, alone_ids, strict=True)]
        self.keep(Step("identity", {"identical": sum(same), "of": len(same)}))
        return {
            "tokens_identical": sum(same) / len(same),
            "overhead_p50_ms": pair["overhead_p50_ms"],
            "ttft_p50_ms": pair["mesh_ttft_ms"]["p50"],
            "tpot_p50_ms": pair["mesh_tpot_ms"]["p50"],
            "goodput_ratio_vs_aggregated": _ratio(pair["goodput"], alone["goodput"]),
        }

    async def _with_pair(self, front: Front) -> tuple[dict[str, Any], list[list[int]]]:
        engines = {name: self._setup.engine(name, ROLES[name[0]]) for name in PAIR}
        seconds = await start_all(list(engines.values()))
        self.keep(Step("pair-start", {"seconds": seconds}))
        try:
            async with running_workers(front, engines):
                ids = await self._identity(front)
                figures = await self._overhead(front, engines["p0"], engines["d0"])
                self.keep(Step("pair-overhead", figures))
                figures["goodput"] = await self._goodput(front, "pair")
        finally:
            await _stop(engines)
        return figures, ids

    async def _with_aggregated(self, front: Front) -> tuple[dict[str, Any], list[list[int]]]:
        engines = {name: self._setup.engine(name, ROLES[name[0]]) for name in AGGREGATED}
        seconds = await start_all(list(engines.values()))
        self.keep(Step("aggregated-start", {"seconds": seconds}))
        try:
            prompts = self._identity_prompts()
            ids = [
                (await ask_alone(engines["a0"], prompt, self._work.output_tokens))[1]
                for prompt in prompts
            ]
            async with running_workers(front, engines):
                figures = {"goodput": await self._goodput(front, "aggregated")}
        finally:
            await _stop(engines)
        return figures, ids

    async def _with_rival(self, directory: Path) -> None:
        from bench.sglang_rival import measure_rival  # its client is no part of the rest

        try:
            await measure_rival(self._setup, self._work, self.keep, directory)
        except ChildFailed as failed:
            note(f"SGLang's own servers were not measured: {failed}")

    def _identity_prompts(self) -> list[list[int]]:
        plan = self._work.prompts(seed=99)
        return [list(plan.ids(number)) for number in range(8)]

    async def _identity(self, front: Front) -> list[list[int]]:
        """Asks through the mesh, one at a time, so that batching rounds nothing differently."""
        async with Asker(front.address) as asker:
            return [
                (await asker.ask(prompt, self._work.output_tokens))[1]
                for prompt in self._identity_prompts()
            ]

    async def _overhead(
        self, front: Front, prefill: SglangEngine, decode: SglangEngine
    ) -> dict[str, Any]:
        """Asks in turn directly and through the mesh; every prompt is new."""
        work = self._work
        plan = work.prompts(seed=7)
        direct, mesh = list[Outcome](), list[Outcome]()
        async with Asker(front.address) as asker:
            for number in range(work.requests + WARM_UP):
                prompts = [list(plan.ids(2 * number + side)) for side in range(2)]
                first, _ = await ask_pair(prefill, decode, prompts[0], work.output_tokens)
                second, _ = await asker.ask(prompts[1], work.output_tokens)
                if number >= WARM_UP:
                    direct.append(first)
                    mesh.append(second)
            parts = asker.parts_ms[WARM_UP:]
        pairs = list(zip(mesh, direct, strict=True))
        return {
            "overhead_p50_ms": 1e3 * statistics.median(m.ttft_s - d.ttft_s for m, d in pairs),
            "overhead_total_p50_ms": 1e3
            * statistics.median(_total_s(m) - _total_s(d) for m, d in pairs),
            "direct_ttft_ms": percentiles_ms([it.ttft_s for it in direct]),
            "mesh_ttft_ms": percentiles_ms([it.ttft_s for it in mesh]),
            "direct_tpot_ms": percentiles_ms([it.tpot_s or 0.0 for it in direct]),
            "mesh_tpot_ms": percentiles_ms([it.tpot_s or 0.0 for it in mesh]),
            "mesh_parts_p50_ms": {
                name: round(statistics.median(it.get(name, 0.0) for it in parts), 3)
                for name in parts[0]
            },
            "requests": len(pairs),
        }

    async def _goodput(self, front: Front, name: str) -> float:
        return await goodput(
            self._work, name, lambda prompts: StreamTarget(front.address, prompts), self.keep
        )


class Asker:
    """One client of a router. `parts_ms` has where the time of each request went."""

    def __init__(self, address: str) -> None:
        self._client = RouterClient(address)
        self.parts_ms: list[dict[str, float]] = []

    async def __aenter__(self) -> "Asker":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.__aexit__(None, None, None)

    async def ask(self, prompt: Sequence[int], tokens: int) -> tuple[Outcome, list[int]]:
        """Runs one greedy request."""
        sampling = SamplingParams(max_tokens=tokens, temperature=0.0, ignore_eos=True)
        options = RequestOptions(sampling=sampling, timeout_s=120)
        outcome, ids = Outcome(time.monotonic()), list[int]()
        async for part in self._client.generate(Prompt(input_ids=tuple(prompt)), options):
            if isinstance(part, Completion):
                self.parts_ms.append(_parts_ms(part.timing))
            elif part.output_ids:
                outcome.last_s = time.monotonic()
                outcome.first_s = outcome.first_s or outcome.last_s
                outcome.tokens += len(part.output_ids)
                ids += part.output_ids
        outcome.ended_s = time.monotonic()
        return outcome, ids


def _parts_ms(timing: Timing) -> dict[str, float]:
    seconds = asdict(timing)
    return {name.removesuffix("_s"): 1e3 * (value or 0.0) for name, value in seconds.items()}


def _total_s(outcome: Outcome) -> float:
    return outcome.ended_s - outcome.started_s


def _ratio(ours: float, theirs: float) -> float | None:
    return ours / theirs if theirs else None


async def _stop(engines: Mapping[str, SglangEngine]) -> None:
    await asyncio.gather(*(engine.stop() for engine in engines.values()))


def main() -> None:
    """Runs the command line."""
    typer.run(_command)


def _command(
    size: Annotated[str, typer.Option(help="tiny (Baton's own), 1b or 8b.")] = "tiny",
    prompt_tokens: int = 256,
    output_tokens: int = 16,
    requests: Annotated[int, typer.Option(help="Requests each way for the overhead.")] = 30,
    rates: Annotated[str, typer.Option(help="Requests per second, rising.")] = "1,2,4",
    seconds: Annotated[float, typer.Option(help="Measured at each rate.")] = 8.0,
    ttft_ms: Annotated[float, typer.Option(help="Target for TTFT.")] = 1000.0,
    tpot_ms: Annotated[float, typer.Option(help="Target for TPOT.")] = 200.0,
    kv_tokens: int = 8192,
    block_size: Annotated[int, typer.Option(help="Tokens of a block; SGLang's page.")] = 16,
    tp: Annotated[int, typer.Option(help="GPUs of each engine, all engines on the same.")] = 1,
    out: Annotated[
        Path | None, typer.Option(help="File that has each part's figures at once.")
    ] = None,
    rival: Annotated[
        bool, typer.Option(help="Also SGLang's own servers and sglang-router, if it is there.")
    ] = True,
    record: Annotated[bool, typer.Option(help="Keep the result in bench/results.")] = False,
) -> None:
    """Measure what the mesh adds to SGLang, and pair against aggregated."""
    work = Work(
        prompt_tokens, output_tokens, requests,
        tuple(float(word) for word in rates.split(",") if word), seconds, ttft_ms, tpot_ms,
    )  # fmt: skip
    gpus = gpu_count()
    if tp > max(1, gpus):
        raise typer.BadParameter(f"--tp {tp} needs as many GPUs; this machine has {gpus}")
    with tempfile.TemporaryDirectory() as scratch:
        setup = _setup(size, gpus, tp, block_size, kv_tokens, Path(scratch))
        run = Run(setup, work, out, rival=rival)
        # As the services do.
        figures = uvloop.run(run.run(Path(scratch)))
    device = _device(gpus)
    details = {
        "size": size,
        "tp_size": tp,
        "block_size": block_size,
        "work": vars_of(work),
        "steps": run.steps,
    }
    name = f"{device}, {size}" + (f", TP {tp}" if tp > 1 else "")
    emit("bench-sglang", {**figures, "device": name}, details, record)


def vars_of(work: Work) -> dict[str, Any]:
    """Returns what was asked, for the record."""
    return {name: getattr(work, name) for name in work.__slots__}


def _setup(
    size: str, gpus: int, tp: int, block_size: int, kv_tokens: int, directory: Path
) -> Setup:
    tiny = model_dir(DEFAULT_MODEL)
    model = tiny if size == "tiny" else write_shape(size, tiny, directory)
    if not gpus:
        arguments = yaml.safe_load(CPU_CONFIG.read_text(encoding="utf-8"))["engine"]["sglang"]
        return Setup(model, block_size, kv_tokens, arguments)
    arguments = {**GPU_ARGUMENTS, "tp_size": tp}
    if size == "tiny":
        del arguments["load_format"]
    placed = {name: {"base_gpu_id": 1} for name in ("d0", "a1")} if gpus > 1 and tp == 1 else {}
    return Setup(model, block_size, kv_tokens, arguments, placed)


def _device(gpus: int) -> str:
    if not gpus:
        return "cpu"
    import torch

    return f"{gpus} x {torch.cuda.get_device_name(0)}"


if __name__ == "__main__":
    main()
