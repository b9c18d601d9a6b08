"""Steps of only decodes give the same when they are recorded once and replayed.

On CPU a tape stands in for CUDA graphs: see tests/support/tape.py. The last tests want a GPU.
"""

import importlib.util
import random
from array import array
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from baton.engine.torch import assembly
from baton.engine.torch.graphcheck import choose_decode_graphs, recorded_graphs
from baton.engine.torch.graphs import CudaRecorder, DecodeGraphs
from baton.engine.torch.job import Job
from baton.engine.torch.model import LoadedModel, load_model
from baton.engine.torch.runner import StepRunner, allocate_kv
from baton.engine.torch.scheduler import Chunk
from baton.engine.torch.selfcheck import check_job, choose_decode_kernel
from tests.engine.conftest import (
    BLOCK,
    MODELS,
    SHAPE,
    TinyModel,
    collect,
    prompt_of,
    request_of,
    together,
    write_tokenizer,
)
from tests.support.pool_kernel import PoolKernel
from tests.support.tape import TapeRecorder

KV_BYTES = 1 << 19
needs_gpu = pytest.mark.skipif(
    not torch.cuda.is_available() or importlib.util.find_spec("triton") is None,
    reason="needs a GPU and Triton",
)


@pytest.fixture(autouse=True)
def _inference() -> Iterator[None]:
    with torch.inference_mode():
        yield


@pytest.fixture
def loaded(llama: TinyModel) -> LoadedModel:
    return load_model(str(llama.directory), "cpu", "auto")


class Pool:
    """A pool of its own with a runner that gathers, and one that replays where it can."""

    def __init__(self, model: LoadedModel, max_batch: int = 16) -> None:
        self.kv = allocate_kv(model, BLOCK, KV_BYTES)
        self.recorder = TapeRecorder()
        kernel = PoolKernel(self.kv)
        graphs = recorded_graphs(model, self.kv, kernel, max_batch, self.recorder)
        assert graphs is not None
        self.recorder.replayed.clear()
        self.graphs = graphs
        self.eager = StepRunner(model, self.kv)
        self.replaying = StepRunner(model, self.kv, kernel, graphs)
        self._blocks = list(range(self.kv.tensor.shape[0]))
        random.Random(3).shuffle(self._blocks)

    @property
    def replayed_sizes(self) -> list[int]:
        """Which sizes were replayed, in order."""
        return [self.graphs.sizes[-1 - number] for number in self.recorder.replayed]

    def jobs(self, lengths: Sequence[int]) -> list[Job]:
        """Returns jobs of which all but the last token is computed."""
        jobs = [self.job(prompt_of(length, length)) for length in lengths]
        longer = [job for job in jobs if len(job.tokens) > 1]
        if longer:
            self.eager.logits([Chunk(job, 0, len(job.tokens) - 1) for job in longer])
        return jobs

    def job(self, tokens: Sequence[int], spare: int = 12) -> Job:
        """Returns a job of nothing computed with blocks for `spare` tokens more."""
        count = -(-(len(tokens) + spare) // BLOCK)
        mine, self._blocks = self._blocks[:count], self._blocks[count:]
        return check_job(tokens, mine)


def decodes(jobs: Sequence[Job]) -> list[Chunk]:
    return [Chunk(job, len(job.tokens) - 1, 1) for job in jobs]


def step(runner: StepRunner, chunks: Sequence[Chunk]) -> None:
    for job, choice in runner.run(chunks):
        job.tokens.append(choice.token)


@pytest.mark.parametrize(
    ("count", "size"), [(1, 1), (2, 2), (3, 4), (5, 8), (8, 8), (11, 16), (16, 16)]
)
def test_replayed_batches_of_mixed_lengths_equal_eager_ones(
    loaded: LoadedModel, count: int, size: int
) -> None:
    # Lengths neither sorted nor far from a block's border, over which the steps then go.
    lengths = [1 + (11 * row) % 30 for row in range(count)]
    plain, pool = Pool(loaded), Pool(loaded)
    expected, jobs = plain.jobs(lengths), pool.jobs(lengths)
    for _ in range(BLOCK + 2):
        logits = pool.replaying.logits(decodes(jobs))
        torch.testing.assert_close(logits, plain.eager.logits(decodes(expected)))
        step(plain.eager, decodes(expected))
        step(pool.replaying, decodes(jobs))
        assert [job.tokens for job in jobs] == [job.tokens for job in expected]
    assert set(pool.replayed_sizes) == {size}


def test_what_larger_batches_left_behind_does_not_matter(loaded: LoadedModel) -> None:
    plain, pool = Pool(loaded), Pool(loaded)
    for lengths in ([60, 50, 40, 30, 20, 10, 5, 3, 2], [4, 3, 2, 1, 9, 8], [2], [7, 60, 1]):
        expected, jobs = plain.jobs(lengths), pool.jobs(lengths)
        step(plain.eager, decodes(expected))
        step(pool.replaying, decodes(jobs))
        assert [job.tokens for job in jobs] == [job.tokens for job in expected]
    assert pool.replayed_sizes == [16, 8, 1, 4]


def test_replays_write_only_the_new_tokens_kv(loaded: LoadedModel) -> None:
    pool = Pool(loaded)
    jobs = pool.jobs([5, 9, 13])
    before = pool.kv.tensor.clone()
    step(pool.replaying, decodes(jobs))
    changed = (pool.kv.tensor != before).any(-1).any(2).any(1).any(1).nonzero()[:, 0].tolist()
    assert sorted(changed) == sorted(job.blocks[(len(job.tokens) - 2) // BLOCK] for job in jobs)


@pytest.mark.parametrize("extra", ["prompt", "unfinished", "too_many", "too_long"])
def test_other_steps_are_eager(loaded: LoadedModel, extra: str) -> None:
    plain, pool = Pool(loaded, 4), Pool(loaded, 4)
    made: list[list[Job]] = []
    for it, runner in ((plain, plain.eager), (pool, pool.replaying)):
        jobs = it.jobs([3, 8, 5])
        chunks = decodes(jobs)
        if extra == "prompt":
            jobs.append(it.job(prompt_of(6)))
            chunks.append(Chunk(jobs[-1], 0, 6))
        elif extra == "unfinished":
            chunks.append(Chunk(it.job(prompt_of(6)), 0, 1))
        elif extra == "too_many":
            jobs += it.jobs([2, 7])
            chunks = decodes(jobs)
        else:
            jobs += it.jobs([loaded.context_length + 1])
            chunks = decodes(jobs)
        step(runner, chunks)
        made.append(jobs)
    assert [job.tokens for job in made[0]] == [job.tokens for job in made[1]]
    assert pool.replayed_sizes == []


@pytest.mark.parametrize(
    ("max_batch", "sizes"),
    [(1, (1,)), (5, (1, 2, 4, 8)), (64, (1, 2, 4, 8, 16, 24, 32, 48, 64)), (9999, ())],
)
def test_sizes_go_up_to_one_that_holds_the_largest_batch(
    loaded: LoadedModel, max_batch: int, sizes: tuple[int, ...]
) -> None:
    kv = allocate_kv(loaded, BLOCK, KV_BYTES)
    graphs = DecodeGraphs(loaded, kv, PoolKernel(kv), max_batch)
    assert graphs.sizes == (sizes or graphs.sizes)
    assert graphs.sizes[-1] == (sizes or (256,))[-1]
    assert graphs.has_room(graphs.sizes[-1], loaded.context_length)
    assert not graphs.has_room(graphs.sizes[-1] + 1, 1)
    assert not graphs.has_room(1, loaded.context_length + 1)


def test_a_table_is_no_wider_than_the_pool_is_large(loaded: LoadedModel) -> None:
    kv = allocate_kv(loaded, BLOCK, 3 * 1024)
    graphs = recorded_graphs(loaded, kv, PoolKernel(kv), 64, TapeRecorder())
    assert graphs is not None
    assert graphs.has_room(1, 3 * BLOCK)
    assert not graphs.has_room(1, 3 * BLOCK + 1)


def test_a_model_that_waits_for_the_device_is_not_recorded(
    loaded: LoadedModel, caplog: pytest.LogCaptureFixture
) -> None:
    loaded.module.register_forward_pre_hook(_wait, with_kwargs=True)
    kv = allocate_kv(loaded, BLOCK, KV_BYTES)
    assert recorded_graphs(loaded, kv, PoolKernel(kv), 4, TapeRecorder()) is None
    assert "decodes run without CUDA graphs: RuntimeError" in caplog.text
    assert "not permitted when stream is capturing" in caplog.text


def _wait(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
    assert bool((kwargs["input_ids"] >= 0).all())


class ForeignError(Exception):
    """Raised by a kernel's own library."""


def test_the_log_names_what_failed_first(
    loaded: LoadedModel, caplog: pytest.LogCaptureFixture
) -> None:
    def record(compute: Callable[[], None]) -> Callable[[], None]:
        try:
            raise ForeignError("out of resources")
        finally:
            raise RuntimeError("capture was invalidated")

    kv = allocate_kv(loaded, BLOCK, KV_BYTES)
    assert recorded_graphs(loaded, kv, PoolKernel(kv), 4, record) is None
    assert "without CUDA graphs: ForeignError: out of resources" in caplog.text


def test_failures_of_the_kernels_library_are_caught(
    loaded: LoadedModel, caplog: pytest.LogCaptureFixture
) -> None:
    def record(compute: Callable[[], None]) -> Callable[[], None]:
        raise ForeignError("out of resources")

    kv = allocate_kv(loaded, BLOCK, KV_BYTES)
    assert recorded_graphs(loaded, kv, PoolKernel(kv), 4, record, (ForeignError,)) is None
    assert "out of resources" in caplog.text


def _deaf(compute: partial[None]) -> Callable[[], None]:
    compute()
    return lambda: None


def _spoiling(compute: partial[None]) -> Callable[[], None]:
    compute()

    def replay() -> None:
        compute()
        compute.func.__self__._logits.fill_(float("nan"))

    return replay


@pytest.mark.parametrize("record", [_deaf, _spoiling])
def test_graphs_that_differ_are_not_used(
    loaded: LoadedModel, caplog: pytest.LogCaptureFixture, record: Any
) -> None:
    kv = allocate_kv(loaded, BLOCK, KV_BYTES)
    assert recorded_graphs(loaded, kv, PoolKernel(kv), 4, record) is None
    assert "without CUDA graphs: StartupError: the logits of" in caplog.text
    assert "sequences differ (cosine " in caplog.text


def test_cpu_engines_have_no_graphs_and_say_nothing(
    loaded: LoadedModel, caplog: pytest.LogCaptureFixture
) -> None:
    kv = allocate_kv(loaded, BLOCK, KV_BYTES)
    assert choose_decode_graphs(loaded, kv, PoolKernel(kv), 4) is None
    assert choose_decode_graphs(loaded, kv, None, 4) is None
    assert caplog.text == ""


@pytest.mark.parametrize("family", MODELS)
async def test_generations_with_graphs_are_identical(
    tiny_model: Callable[[str], TinyModel],
    fleet: Any,
    monkeypatch: pytest.MonkeyPatch,
    family: str,
) -> None:
    recorder = TapeRecorder()

    def choose(model: LoadedModel, kv: Any, kernel: Any, max_batch: int) -> Any:
        graphs = recorded_graphs(model, kv, kernel, max_batch, recorder)
        recorder.replayed.clear()
        return graphs

    monkeypatch.setattr(assembly, "choose_decode_kernel", lambda model, kv: PoolKernel(kv))
    monkeypatch.setattr(assembly, "choose_decode_graphs", choose)
    model = tiny_model(family)
    # Long enough that all five overlap however late some arrive, and that one is left at the end.
    requests = [request_of(prompt_of(n, n), 40 + 4 * n) for n in (1, 4, 13, 6, 9)]
    async with fleet() as engines:
        engine = await engines.add(model, max_running=8, token_budget=11)
        answers = await together(*(collect(engine.generate(request)) for request in requests))
    for request, answer in zip(requests, answers, strict=True):
        assert answer.tokens == model.greedy(request.input_ids, request.sampling.max_tokens)
    # From all five to the longest alone.
    assert {0, 1, 2, 3} <= set(recorder.replayed)


@pytest.fixture(scope="module")
def on_gpu(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    """A model whose heads are as large as the kernel wants them."""
    directory: Path = tmp_path_factory.mktemp("gpu")
    torch.manual_seed(5)
    size = {"hidden_size": 256, "head_dim": 64, "max_position_embeddings": 2048}
    shape = {**SHAPE, **size, "initializer_range": 0.1}
    LlamaForCausalLM(LlamaConfig(**shape)).save_pretrained(directory)
    write_tokenizer(directory)
    return load_model(str(directory), "cuda", "float32")


@needs_gpu
@pytest.mark.parametrize("count", [1, 3, 8, 20])
def test_cuda_graphs_equal_eager_steps(
    on_gpu: LoadedModel, count: int, caplog: pytest.LogCaptureFixture
) -> None:
    kv = allocate_kv(on_gpu, 16, 1 << 26)
    kernel = choose_decode_kernel(on_gpu, kv)
    assert kernel is not None, caplog.text
    graphs = choose_decode_graphs(on_gpu, kv, kernel, 32)
    assert graphs is not None, caplog.text
    eager, replaying = StepRunner(on_gpu, kv, kernel), StepRunner(on_gpu, kv, kernel, graphs)
    jobs = []
    for row in range(count):
        length, first = 1 + 97 * row % 600, 40 * row
        jobs.append(check_job(prompt_of(length, row), array("q", range(first, first + 40))))
        if length > 1:
            eager.logits([Chunk(jobs[-1], 0, length - 1)])
    for _ in range(18):
        expected = eager.logits(decodes(jobs))
        torch.testing.assert_close(replaying.logits(decodes(jobs)), expected, rtol=1e-3, atol=2e-3)
        step(replaying, decodes(jobs))


@needs_gpu
def test_a_failed_recording_leaves_a_working_gpu(
    on_gpu: LoadedModel, caplog: pytest.LogCaptureFixture
) -> None:
    kv = allocate_kv(on_gpu, 16, 1 << 26)
    kernel = choose_decode_kernel(on_gpu, kv)
    assert kernel is not None, caplog.text
    stream = torch.cuda.current_stream()
    hook = on_gpu.module.register_forward_pre_hook(_wait, with_kwargs=True)
    assert recorded_graphs(on_gpu, kv, kernel, 4, CudaRecorder()) is None
    assert "decodes run without CUDA graphs" in caplog.text
    hook.remove()
    assert torch.cuda.current_stream() == stream
    assert torch.cuda.get_sync_debug_mode() == 0
    assert choose_decode_graphs(on_gpu, kv, kernel, 4) is not None, caplog.text


@needs_gpu
def test_a_capture_that_breaks_off_leaves_the_thread_on_its_stream() -> None:
    numbers, calls = torch.zeros(4, device="cuda"), iter([False, True])
    stream = torch.cuda.current_stream()

    def compute() -> None:
        numbers.add_(1)
        if next(calls):
            torch.cuda.synchronize()

    with pytest.raises(RuntimeError):
        CudaRecorder()(compute)
    assert torch.cuda.current_stream() == stream
    assert numbers.add_(1).tolist() == [2.0] * 4
