"""Measures one part of the comparison after the other and keeps each."""

import gc
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from baton.compute import ComputeOptions
from bench import report
from bench.children import module, run_for_json
from bench.disagg import plain
from bench.disagg.cores import own_cores
from bench.disagg.mesh import Hardware, offered, running_pair
from bench.disagg.neighbour import Place
from bench.disagg.offer import HEAD, Offer, Point, Stream, row
from bench.disagg.state import State
from bench.disagg.work import BINDING, WORKLOADS, Pace, Shape, Slo, Workload, arrivals
from bench.engine import save_model

SPLIT = ("prefill", "decode")
TOGETHER = ("decode", "decode")
_LONG = Shape(1024, 2)
"""Prompts that keep the prefill worker busy while the interference is measured."""
_STREAMS = Shape(48, 64)
_BUSY = 0.75
"""Share of the prefill worker's time that they take."""
_CALM = 0.35
"""Share of what the decode worker can do that the streams beside them take."""
_WARM_S = 5.0
_REQUESTS = 16
"""Of the comparison of engines."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What to run. `budgets` are the baseline's chunk sizes to try; None is the engine's own.

    Without a `stretch`, prompts are as long as keeps both roles equally busy in the mixed workload.
    """

    device: str
    dtype: str
    size: str
    seconds: float
    budgets: tuple[int | None, ...]
    policy: str
    stretch: float | None = None
    pace_prompt: int = 512


class Bench:
    """One comparison on this machine."""

    def __init__(self, settings: Settings, state: State, model: Path, scratch: Path) -> None:
        self._settings = settings
        self._state = state
        self._model = model
        self._scratch = scratch
        self._cores = own_cores()
        self._runs = 0
        self._offers = 0

    async def run(self, part: str) -> None:
        """Measures a part unless it was. Raises KeyError for an unknown one."""
        if not (self._model / "config.json").exists():
            self._model.mkdir(parents=True, exist_ok=True)
            s = self._settings
            save_model(self._model, s.size, s.device, str(self._dtype()).removeprefix("torch."))
            _give_memory_back()
        if part == "engine" or not self._state.has("pace"):
            await self._engine()
        self._cores.keep_aside()
        if part == "interference":
            await self._interference()
            await self._machine()
        elif part != "engine":
            await self._compare(self._work(part))

    @property
    def pace(self) -> Pace:
        """What an idle worker takes."""
        return Pace(**self._state.values["pace"])

    @property
    def stretch(self) -> float:
        """The factor of prompt lengths."""
        given = self._settings.stretch
        return self.pace.balance(WORKLOADS[BINDING]) if given is None else given

    async def _engine(self) -> None:
        """Measures the pace on one worker's core, and both engines on the cores of both."""
        if self._state.has("engine"):
            return
        s = self._settings
        self._cores.keep_to_workers()
        torch.set_num_threads(1)
        engine = plain.open_engine(self._model, s.device, s.dtype, self._kv_mib())
        await plain.start(engine)
        try:
            pace = await plain.measure_pace(engine, s.pace_prompt)
            report.note(str(pace))
            self._state.put("pace", asdict(pace))
            torch.set_num_threads(2)
            requests = arrivals(self._work("mixed").shapes, 1.0, 4.0 * _REQUESTS, 1)[:_REQUESTS]
            ours = await plain.engine_tokens_per_s(engine, requests)
        finally:
            await engine.stop()
        del engine
        _give_memory_back()
        theirs = plain.plain_tokens_per_s(self._model, requests, s.device, self._dtype())
        _give_memory_back()
        report.note(f"engine {ours:.0f}, transformers {theirs:.0f} tokens/s")
        self._state.put("engine", {"engine_tokens_per_s": ours, "plain_tokens_per_s": theirs})

    async def _compare(self, work: Workload) -> None:
        """Runs both arms at every load. The baseline's chunk size is chosen at the highest."""
        slo = Slo.of(work, self.pace)
        report.note(f"{work.name}: targets {slo}, {HEAD}")
        await self._arm(work, slo, "split", SPLIT, None, work.loads)
        best: tuple[float, int | None] = (-1.0, None)
        for budget in self._settings.budgets:
            arm = f"together-{budget or 'auto'}"
            points = await self._arm(work, slo, arm, TOGETHER, budget, work.loads[-1:])
            best = max(best, (_merit(points[-1]), budget), key=lambda it: it[0])
        arm = f"together-{best[1] or 'auto'}"
        await self._arm(work, slo, f"{arm}-low", TOGETHER, best[1], work.loads[:-1])
        self._state.put(f"{work.name}/best", {"arm": arm, "slo": asdict(slo)})

    async def _arm(
        self,
        work: Workload,
        slo: Slo,
        name: str,
        roles: Sequence[str],
        budget: int | None,
        loads: Sequence[float],
    ) -> list[dict[str, Any]]:
        """Returns one point per load, measured now or before."""
        key = f"{work.name}/{name}"
        if not self._state.has(key):
            points = []
            folder = self._folder()
            async with running_pair(self._hardware(), roles, slo, budget, folder) as mesh:
                await self._warm(mesh, work.shapes, slo, folder)
                for load in loads:
                    rate = load * self.pace.most_per_s(work)
                    stream = Stream(work.shapes, rate, seed=round(1000 * load))
                    point = await self._offer(mesh, (stream,), slo, folder)
                    report.note(row(f"{name} at {load:g}", point))
                    points.append({"load": load, **asdict(point)})
            self._state.put(key, points)
        kept: list[dict[str, Any]] = self._state.values[key]
        return kept

    async def _interference(self) -> None:
        """Measures streams on the decode worker with an idle and with a busy prefill worker."""
        if self._state.has("interference"):
            return
        pace = self.pace
        slo = Slo.of(self._work("mixed"), pace)
        heavy = self._heavy()
        few = Stream((_STREAMS,), _CALM * 8 / (_STREAMS.answer * pace.full_step_s), seed=5)
        long = Stream((heavy,), _BUSY / pace.prefill_s(heavy.prompt), seed=6, is_judged=False)
        found: dict[str, Any] = {}
        folder = self._folder()
        async with running_pair(self._hardware(), SPLIT, slo, None, folder) as mesh:
            await self._warm(mesh, (_STREAMS, heavy), slo, folder)
            for name, streams in (("alone", (few,)), ("beside", (few, long)), ("again", (few,))):
                point = await self._offer(mesh, streams, slo, folder)
                report.note(row(name, point))
                found[name] = asdict(point)
        self._state.put("interference", found)

    async def _machine(self) -> None:
        """Measures what the same computing beside costs without a mesh."""
        if self._state.has("machine"):
            return
        place = Place(
            str(self._model.resolve()),
            self._settings.device,
            self._settings.dtype,
            self._kv_mib(),
            self._heavy().prompt,
            self._cores.workers,
        )
        command = module("bench.disagg.neighbour", json.dumps(asdict(place)))
        self._state.put("machine", await run_for_json("neighbour", command, self._folder()))

    def _heavy(self) -> Shape:
        return Shape(round(self.stretch * _LONG.prompt), _LONG.answer)

    async def _warm(self, mesh: str, shapes: tuple[Shape, ...], slo: Slo, folder: Path) -> None:
        """Lets pairs, memory and costs settle."""
        work = Workload("warm", (*shapes, Shape(300, 8)), (), 1.0, 1.0)
        stream = Stream(work.shapes, 0.5 * self.pace.most_per_s(work), seed=77)
        await self._offer(mesh, (stream,), slo, folder, min(_WARM_S, self._settings.seconds))

    async def _offer(
        self,
        mesh: str,
        streams: tuple[Stream, ...],
        slo: Slo,
        folder: Path,
        seconds: float | None = None,
    ) -> Point:
        self._offers += 1
        seconds = seconds or self._settings.seconds
        return await offered(Offer(mesh, streams, seconds, slo, 10_000 * self._offers), folder)

    def _work(self, name: str) -> Workload:
        return WORKLOADS[name].stretched(self.stretch)

    def _hardware(self) -> Hardware:
        s = self._settings
        compute = ComputeOptions(s.device, s.dtype)  # type: ignore[arg-type]  # argparse checked
        is_cpu = s.device == "cpu"
        return Hardware(
            self._model.resolve(),
            compute,
            cores=self._cores.workers if is_cpu else (),
            gpus=() if is_cpu else range(torch.cuda.device_count()),
            kv_memory_mib=self._kv_mib(),
            policy=s.policy,
        )

    def _folder(self) -> Path:
        self._runs += 1
        folder = self._scratch / f"run-{self._runs}"
        folder.mkdir()
        return folder

    def _kv_mib(self) -> int:
        return 512 if self._settings.device == "cpu" else 8192

    def _dtype(self) -> torch.dtype:
        name = self._settings.dtype
        if name == "auto":
            name = "float32" if self._settings.device == "cpu" else "bfloat16"
        kind = getattr(torch, name)
        assert isinstance(kind, torch.dtype)
        return kind


def _give_memory_back() -> None:
    """The workers need the GPU's memory that this process is done with."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _merit(point: dict[str, Any]) -> float:
    """Goodput; where two have the same, the lower TPOT."""
    tpot_ms = point["tpot_ms"].get("p99", 1e9)
    return float(point["attained"]) * float(point["offered_per_s"]) - 1e-9 * float(tpot_ms)
