"""Which steps become samples for the cost model."""

from baton.engine.base import EngineSamples, PrefillSample, StepSample
from baton.engine.torch.job import Job, Order, Phase, StopRule
from baton.engine.torch.samples import MAX_SAMPLES, StepSamples
from baton.engine.torch.scheduler import Chunk
from baton.requests import EngineRequest, SamplingParams


def job(tokens: int, phase: Phase, cached: int = 0) -> Job:
    request = EngineRequest("r", tuple(range(tokens)), SamplingParams())
    made = Job(
        request=request,
        owner="r",
        order=Order(0, 0),
        seed=0,
        stop_rule=StopRule(frozenset(), 9),
        submitted_s=0.0,
        on_event=lambda event: None,
        tokens=list(request.input_ids),
    )
    made.phase, made.cached_tokens = phase, cached
    return made


def decode() -> Chunk:
    return Chunk(job(10, Phase.DECODING), 9, 1)


def test_step_of_decodes_is_one_sample() -> None:
    samples = StepSamples()
    samples.note([decode(), decode()], 0.25)
    assert samples.take() == EngineSamples((), (StepSample(2, 20, 0.25),))
    assert samples.take() == EngineSamples()


def test_prompt_alone_is_one_sample_over_its_chunks() -> None:
    samples, prompt = StepSamples(), job(40, Phase.PREFILLING, cached=8)
    samples.note([Chunk(prompt, 8, 16)], 0.25)
    samples.note([Chunk(prompt, 24, 16)], 0.5)
    assert samples.take().prefills == (PrefillSample(32, 8, 0.75),)


def test_decodes_beside_a_prompt_are_taken_off() -> None:
    samples, prompt = StepSamples(), job(16, Phase.PREFILLING)
    samples.note([decode()], 0.125)
    samples.note([decode(), Chunk(prompt, 0, 16)], 1.0)
    assert samples.take().prefills == (PrefillSample(16, 0, 0.875),)


def test_step_of_several_prompts_is_divided_by_their_tokens() -> None:
    samples = StepSamples()
    first, second = job(40, Phase.PREFILLING), job(8, Phase.PREFILLING)
    samples.note([Chunk(first, 0, 24), Chunk(second, 0, 8)], 1.0)
    samples.note([Chunk(first, 24, 16)], 0.5)
    assert samples.take().prefills == (PrefillSample(8, 0, 0.25), PrefillSample(40, 0, 1.25))


def test_time_that_nobody_can_divide_is_no_sample() -> None:
    samples, prompt = StepSamples(), job(32, Phase.PREFILLING)
    samples.note([decode(), Chunk(prompt, 0, 16)], 1.0)
    samples.note([Chunk(prompt, 16, 16)], 1.0)
    assert samples.take() == EngineSamples()


def test_aborted_prompt_leaves_nothing() -> None:
    samples, prompt = StepSamples(), job(32, Phase.PREFILLING)
    samples.note([Chunk(prompt, 0, 16)], 1.0)
    samples.forget(prompt)
    samples.note([Chunk(prompt, 16, 16)], 1.0)
    assert samples.take() == EngineSamples()


def test_samples_are_bounded() -> None:
    samples = StepSamples()
    for _ in range(3 * MAX_SAMPLES):
        samples.note([decode()], 0.1)
    assert len(samples.take().steps) == MAX_SAMPLES
