"""Measures one part of the comparison after the other and keeps each."""

import gc
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from baton.compute import ComputeOptions
from bench import report
from bench.children import module, run_for_json
from bench.disagg import plain
from bench.disagg.cores import has_tiles, own_cores
from bench.disagg.mesh import Hardware, offered, running_pair
from bench.disagg.neighbour import Place
from bench.disagg.offer import Offer, Stream
from bench.disagg.pace import LOCAL_TOKENS, measure_pace
from bench.disagg.point import HEAD, Point, Turn, row
from bench.disagg.state import State
from bench.disagg.summary import SPLIT_NAME, points_of, turn_key
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
_ROUNDS = 16
"""Of streams alone and beside the busy prefill worker, in turn: many and short ones, since what
else the machine does lasts from seconds to minutes and should be in both."""
_ROUND_S = 15.0
_WARM_S = 5.0
_NO_HURRY = Slo(60.0, 1.0)
"""Targets while the pace is measured, which decides the real ones."""
_REQUESTS = 16
"""Of the comparison of engines."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What to run. `budgets` are the baseline's chunk sizes to try; None is the engine's own.

    Without a `stretch`, prompts are as long as keeps both roles equally busy in the mixed workload.
    `tpot_factor` is for all workloads, instead of each one's own.
    """

    device: str
    dtype: str
    size: str
    seconds: float
    budgets: tuple[int | None, ...]
    policy: str
    turns: int = 2
    stretch: float | None = None
    tpot_factor: float | None = None
    pace_prompt: int = 512


@dataclass(frozen=True, slots=True)
class Arm:
    """Two workers' roles; `budget` is the chunk size of those that do both."""

    roles: tuple[str, str]
    budget: int | None = None

    @property
    def name(self) -> str:
        """What it is called in the table."""
        return SPLIT_NAME if self.roles == SPLIT else f"together-{self.budget or 'auto'}"


SPLIT_ARM = Arm(SPLIT)


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
            save_model(self._model, s.size, s.device, self._dtype_name())
            _give_memory_back()
        if part == "engine":
            await self._engine()
            return
        self._cores.keep_aside()
        await self._pace()
        if part == "interference":
            await self._interference()
            await self._machine()
        else:
            await self._compare(self._work(part))

    @property
    def pace(self) -> Pace:
        """What the fleet's roles take."""
        return Pace(**self._state.values["pace"])

    @property
    def stretch(self) -> float:
        """The factor of prompt lengths."""
        given = self._settings.stretch
        return self.pace.balance(WORKLOADS[BINDING]) if given is None else given

    async def _engine(self) -> None:
        """Measures both engines on the cores of both workers."""
        if self._state.has("engine"):
            return
        s = self._settings
        self._cores.keep_to_workers()
        torch.set_num_threads(len(self._cores.workers))
        mixed = WORKLOADS[BINDING]
        requests = arrivals(mixed.shapes, 1.0, 4.0 * _REQUESTS, 1)[:_REQUESTS]
        engine = plain.open_engine(self._model, s.device, self._dtype_name(), self._kv_mib())
        await plain.start(engine)
        try:
            await plain.engine_tokens_per_s(engine, requests[:1])
            ours = await plain.engine_tokens_per_s(engine, requests)
        finally:
            await engine.stop()
        del engine
        _give_memory_back()
        theirs = plain.plain_tokens_per_s(self._model, requests, s.device, self._dtype())
        _give_memory_back()
        report.note(f"engine {ours:.0f}, transformers {theirs:.0f} tokens/s")
        self._state.put("engine", {"engine_tokens_per_s": ours, "plain_tokens_per_s": theirs})

    async def _pace(self) -> None:
        """Measures what everything of this comparison is scaled by, unless it was."""
        if not self._state.has("pace"):
            self._state.put("pace", asdict(await self._pace_now()))

    async def _pace_now(self) -> Pace:
        """Returns what a fleet's roles take while both are busy."""
        hardware = _by_length(self._hardware(), LOCAL_TOKENS)
        async with running_pair(hardware, SPLIT, _NO_HURRY, None, self._folder()) as mesh:
            pace = await measure_pace(mesh, self._settings.pace_prompt)
        report.note(str(pace))
        return pace

    async def _compare(self, work: Workload) -> None:
        """Runs all arms at every load, the highest first: it tells soonest how they differ."""
        report.note(f"{work.name}: prompts x {self.stretch:.2f}")
        for load in reversed(work.loads):
            for number in range(self._settings.turns):
                await self._round(work, load, number)
        self._state.put(f"{work.name}/whole", {})

    async def _round(self, work: Workload, load: float, number: int) -> None:
        """Gives each arm a turn, in the other order each time.

        A shared machine becomes slower or faster by half within minutes, and a target of 1.5 times
        a token's time would then bind nobody or be out of everybody's reach. So each round has its
        own pace: load and targets of its turns follow from it. GPUs keep theirs.
        """
        arms = [SPLIT_ARM, *(Arm(TOGETHER, budget) for budget in self._settings.budgets)]
        keys = {arm: turn_key(work.name, load, arm.name, number) for arm in arms}
        missing = [arm for arm in arms if not self._state.has(keys[arm])]
        if not missing:
            return
        pace = await self._pace_now() if self._settings.device == "cpu" else self.pace
        slo = Slo.of(work, pace)
        rate = load * pace.most_per_s(work)
        stream = Stream(work.shapes, rate, seed=round(1000 * load) + number)
        report.note(f"{slo}, {rate:.2f} requests/s\n{HEAD}")
        for arm in missing if number % 2 == 0 else reversed(missing):
            self._state.put(keys[arm], asdict(await self._turn(work, arm, stream, slo)))
            point = points_of(self._state.values, work.name)[arm.name][load]
            report.note(row(f"{arm.name} at {load:g}", point))

    async def _turn(self, work: Workload, arm: Arm, stream: Stream, slo: Slo) -> Turn:
        hardware, folder = self._hardware(), self._folder()
        async with running_pair(hardware, arm.roles, slo, arm.budget, folder) as mesh:
            await self._warm(mesh, work.shapes)
            return await self._offer(mesh, (stream,), slo)

    async def _interference(self) -> None:
        """Measures streams on the decode worker with an idle and with a busy prefill worker.

        The two take turns, in the other order each time, so that a drift of the machine is in
        both. What surrounds the workers stays off the decode worker's core in both: left to roam
        it would leave for the other core while that is idle, and come back when it is not.
        """
        if self._state.has("interference"):
            return
        self._cores.keep_off_last_worker()
        pace = self.pace
        slo = Slo.of(self._work("mixed"), pace)
        heavy = self._heavy()
        few_per_s = _CALM * 8 / (_STREAMS.answer * pace.full_step_s)
        long = Stream((heavy,), _BUSY / pace.prefill_s(heavy.prompt), seed=6, is_judged=False)
        round_s = min(_ROUND_S, self._settings.seconds)
        found: dict[str, list[dict[str, Any]]] = {"alone": [], "beside": []}
        folder = self._folder()
        hardware = _by_length(self._hardware(), 2 * _STREAMS.prompt)
        async with running_pair(hardware, SPLIT, slo, None, folder) as mesh:
            await self._warm(mesh, (_STREAMS, heavy))
            for number in range(_ROUNDS):
                few = Stream((_STREAMS,), few_per_s, seed=5 + 10 * number)
                sides = {"alone": (few,), "beside": (few, long)}
                for name in sides if number % 2 == 0 else reversed(sides):
                    turn = await self._offer(mesh, sides[name], slo, round_s)
                    found[name].append(asdict(turn))
        for name, turns in found.items():
            report.note(row(name, Point.of([Turn.read(it) for it in turns])))
        self._state.put("interference", found)

    async def _machine(self) -> None:
        """Measures what the same computing beside costs without a mesh."""
        if self._state.has("machine"):
            return
        place = Place(
            str(self._model.resolve()),
            self._settings.device,
            self._dtype_name(),
            self._kv_mib(),
            self._heavy().prompt,
            self._cores.workers,
        )
        command = module("bench.disagg.neighbour", json.dumps(asdict(place)))
        self._state.put("machine", await run_for_json("neighbour", command, self._folder()))

    def _heavy(self) -> Shape:
        return Shape(round(self.stretch * _LONG.prompt), _LONG.answer)

    async def _warm(self, mesh: str, shapes: tuple[Shape, ...]) -> None:
        """Lets pairs, memory and costs settle."""
        work = Workload("warm", (*shapes, Shape(300, 8)), (), 1.0, 1.0)
        stream = Stream(work.shapes, 0.5 * self.pace.most_per_s(work), seed=77)
        await self._offer(mesh, (stream,), _NO_HURRY, min(_WARM_S, self._settings.seconds))

    async def _offer(
        self, mesh: str, streams: tuple[Stream, ...], slo: Slo, seconds: float | None = None
    ) -> Turn:
        self._offers += 1
        seconds = seconds or self._settings.seconds
        offer = Offer(mesh, streams, seconds, 10_000 * self._offers, slo)
        return await offered(offer, self._folder())

    def _work(self, name: str) -> Workload:
        work = WORKLOADS[name].stretched(self.stretch)
        factor = self._settings.tpot_factor
        return work if factor is None else replace(work, tpot_factor=factor)

    def _hardware(self) -> Hardware:
        s = self._settings
        compute = ComputeOptions(s.device, self._dtype_name())  # type: ignore[arg-type]  # argparse checked
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

    def _dtype_name(self) -> str:
        if self._settings.dtype != "auto":
            return self._settings.dtype
        return "bfloat16" if self._settings.device == "cuda" or has_tiles() else "float32"

    def _dtype(self) -> torch.dtype:
        kind = getattr(torch, self._dtype_name())
        assert isinstance(kind, torch.dtype)
        return kind


def _by_length(hardware: Hardware, threshold_tokens: int) -> Hardware:
    """Returns it with the chapter's rule: long prompts always leave, short ones never do."""
    return replace(
        hardware,
        policy="least_loaded",
        threshold_tokens=threshold_tokens,
        prefill_queue_max=10_000,
    )


def _give_memory_back() -> None:
    """The workers need the GPU's memory that this process is done with."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
