"""Fits, presets and the arithmetic of results."""

import json
from pathlib import Path

import pytest

from baton.latency import WorkerCosts
from sim.costs import distserve, splitwise
from sim.costs.fit import fit
from sim.costs.model import StepCosts
from sim.costs.presets import UnknownHardwareError, hardware
from sim.experiment import Experiment, run_once
from sim.outcome import Ending, Outcome
from sim.results.ideal import profile
from sim.results.metrics import quantile
from sim.results.recorder import Recorder, Slo
from sim.results.summary import estimate
from sim.setup import PolicySpec
from sim.workload import SimRequest
from tests.sim.worlds import ListTrace, fleet, replay


def test_a_fit_finds_the_coefficients_behind_its_samples() -> None:
    samples = [
        ((1.0, float(n), n * n / 2), 0.02 + 1e-4 * n + 3e-9 * n * n / 2)
        for n in (64, 256, 1024, 4096, 8192)
    ]
    found, error = fit(samples)
    assert found == pytest.approx((0.02, 1e-4, 3e-9), rel=1e-3)
    assert error < 1e-6


def test_a_fit_has_no_negative_coefficient() -> None:
    samples = [((1.0, float(n), n * n / 2), 0.01 * n**0.5) for n in (1, 4, 16, 64)]
    found, error = fit(samples)
    assert min(found) >= 0
    assert 0 < error < 1


def test_costs_agree_with_the_model_that_the_mesh_predicts_with() -> None:
    costs = StepCosts(prefill=(5e-3, 2e-4, 1e-8), decode=(5e-3, 5e-4, 1e-7))
    model = costs.worker_costs()
    assert costs.prefill_s(700, 300, budget=1024) == pytest.approx(model.prefill_s(700, 300))
    assert costs.decode_s(7, 900) == pytest.approx(model.step_s(7, 900))
    assert StepCosts.of(WorkerCosts()) == StepCosts.of(StepCosts.of(WorkerCosts()).worker_costs())


def test_chunks_cost_a_prompt_only_their_constant_more() -> None:
    costs = StepCosts(prefill=(5e-3, 2e-4, 1e-8), decode=(5e-3, 5e-4, 1e-7))
    whole_s = costs.prefill_s(1000, 0, budget=1000)
    halves_s = costs.prefill_s(500, 0, budget=500) + costs.prefill_s(500, 500, budget=500)
    assert halves_s == pytest.approx(whole_s + 5e-3)


def test_splitwise_rows_become_costs_and_longer_prompts_stay_plausible(tmp_path: Path) -> None:
    path = tmp_path / "perf.csv"
    head = "model,hardware,prompt_size,batch_size,token_size,prompt_time,token_time,tensor_parallel"
    rows = [
        f"llama2-70b,h100-80gb,{size},{batch},128,{30 + 0.1 * size},{28 + 0.2 * batch},8"
        for size, batch in ((512, 1), (1024, 1), (4096, 1), (8192, 1), (512, 16), (512, 64))
    ]
    path.write_text("\n".join([head, *rows]) + "\n")
    found = splitwise.read(path, "llama2-70b", "h100-80gb", 8)
    assert found.costs.prefill_s(2048, 0, 2048) == pytest.approx(0.235, rel=0.05)
    assert found.costs.decode_s(32, 32 * 576) == pytest.approx(34.4e-3, rel=0.05)
    assert found.prefill_error is not None
    assert "mean fit error" in found.describe()
    with pytest.raises(LookupError):
        splitwise.read(path, "llama2-70b", "a100-80gb", 8)


def test_distserve_profiles_keep_their_two_regimes(tmp_path: Path) -> None:
    path = tmp_path / "profiler-a100-80g.distserve.json"
    profile_1 = {
        "decoding_large_small_bs_threshold": 95,
        "prefill": [18.0, 0.1, 7e-6],
        "decoding_smallbs": [20.0, 6e-4, 0.04],
        "decoding_largebs": [7.0, 5e-4, 0.16],
    }
    path.write_text(json.dumps({"facebook/opt-13b": {"1": profile_1}}))
    costs = distserve.read(path, "opt-13b", 1).costs
    assert costs.prefill_s(1000, 0, 1000) == pytest.approx((18 + 100 + 7) / 1e3)
    assert costs.decode_s(95, 10_000) == pytest.approx((20 + 6 + 3.8) / 1e3)
    assert costs.decode_s(96, 10_000) == pytest.approx((7 + 5 + 15.36) / 1e3)


def test_unknown_hardware_says_what_there_is(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("BATON_TRACES", str(tmp_path))
    with pytest.raises(UnknownHardwareError, match="smg-mock"):
        hardware("abacus")
    with pytest.raises(UnknownHardwareError, match="BATON_TRACES"):
        hardware("h100")


def test_goodput_is_joint_and_counts_the_rejected() -> None:
    recorder = Recorder(Slo(1.0, 0.05), long_above=256)
    latencies = [(0.5, 0.04), (0.5, 0.06), (1.5, 0.04), (0.5, None)]
    for ttft_s, tpot_s in latencies:
        request = SimRequest(0.0, 300, 2)
        recorder.add(Outcome(request, Ending.SERVED, "", 2.0, ttft_s=ttft_s, tpot_s=tpot_s))
    recorder.add(Outcome(SimRequest(0.0, 10, 2), Ending.REJECTED, "QUEUE_FULL", 0.0))
    assert (recorder.everyone.met, recorder.everyone.offered) == (2, 5)
    assert recorder.classes["short"].offered == 1
    assert recorder.rejections == {"QUEUE_FULL": 1}


def test_quantiles_are_nearest_rank() -> None:
    values = [float(n) for n in range(1, 101)]
    assert [quantile(values, share) for share in (0.0, 0.5, 0.9, 0.99, 1.0)] == [1, 50, 90, 99, 100]
    assert quantile([], 0.5) is None


def test_an_interval_is_students() -> None:
    mean, half_width = estimate([1.0, 2.0, 3.0])
    assert (mean, half_width) == (2.0, pytest.approx(4.303 / 3**0.5))
    assert estimate([4.0]).half_width is None


def test_the_ideal_at_a_size_forgets_what_does_not_fit() -> None:
    one, two = tuple(range(4)), tuple(range(10, 14))
    requests = [SimRequest(n, 65, 1, hashes) for n, hashes in enumerate((one, two, one, one))]
    large = profile(requests, 16, cache_tokens=1600)
    small = profile(requests, 16, cache_tokens=5 * 16)
    assert large.ideal_hit_rate == large.ideal_at_size == pytest.approx(2 * 64 / 260)
    assert small.ideal_at_size == pytest.approx(64 / 260)


def test_the_oracle_agrees_with_the_only_choice_and_not_with_a_bad_one() -> None:
    mesh, _ = replay(fleet(aggregated=1), [SimRequest(0.0, 300, 5)])
    assert mesh.oracle.agreement.share == 1.0
    # In turn, the second long prompt waits behind the first although a worker is idle.
    requests = [SimRequest(0.0, 100, 2), SimRequest(0.3, 1000, 2), SimRequest(0.4, 10, 2)]
    spec = fleet(aggregated=2, kv_tokens=3200)
    in_turn, _ = replay(spec, [requests[1], requests[0], requests[2]][::-1], routing="round_robin")
    assert in_turn.oracle.agreement.decisions == 3
    swapped = [SimRequest(0.0, 1000, 2), SimRequest(0.1, 10, 2), SimRequest(0.3, 10, 2)]
    late, _ = replay(spec, swapped, routing="round_robin")
    assert late.oracle.agreement.agreed == 2


def test_a_run_reports_what_its_policies_did() -> None:
    trace = ListTrace([SimRequest(0.1 * n, 400 if n % 2 else 50, 4) for n in range(40)])
    spec = fleet(1, 1, kv_tokens=16_384)
    figures = run_once(
        Experiment(spec, trace, PolicySpec("weighted", admits_all=True), Slo(5.0, 0.05)), 1
    ).metrics.figures
    assert figures["offered"] == 40
    assert figures["goodput"] == pytest.approx(1.0, abs=0.2)
    assert 0.5 < (figures["offload_share"] or 0) <= 1.0
    assert figures["wasted_prefill"] == 0
    assert figures["short_offered"] == 20


def test_copy_of_a_fit_is_that_fit() -> None:
    try:
        fitted = hardware("h100").costs
    except UnknownHardwareError as error:
        pytest.skip(str(error))
    copy = hardware("h100-copy").costs
    assert copy.prefill == pytest.approx(fitted.prefill, rel=0.03)
    assert copy.decode == pytest.approx(fitted.decode, rel=0.03)
