"""A preset is what a fleet's workers measured, and can be simulated with."""

from pathlib import Path

import pytest

from baton.latency import TRUSTED_SAMPLES, CostModel
from baton.state.members import WorkerView
from baton.state.records import WorkerRecord, WorkerRole, WorkerStats
from sim.calibrate import NotMeasuredError, preset
from sim.costs.hardware import save
from sim.costs.presets import UnknownHardwareError, hardware


def _view(name: str, role: WorkerRole, costs: CostModel | None) -> WorkerView:
    record = WorkerRecord(
        name, name, role, "", 0.0, "tiny", block_size=16, kv_blocks=100, kv_bytes_per_token=64
    )
    return WorkerView(record, WorkerStats(0.0, costs=costs), 0.0)


def test_the_median_worker_becomes_a_preset_that_a_file_keeps(tmp_path: Path) -> None:
    prefill = [
        _view(
            f"p{n}",
            WorkerRole.PREFILL,
            CostModel((1e-3 * n, 1e-4, 1e-9), prefill_samples=50, prefill_error=0.07),
        )
        for n in (1, 2, 9)
    ]
    decode = CostModel(
        step=(3e-3, 1e-4, 1e-8), step_samples=900, step_error=0.04, transfer=(1e-3, 2e-10)
    )
    made, transfer = preset("mine", prefill, [_view("d", WorkerRole.DECODE, decode)])
    assert made.costs.prefill == (2e-3, 1e-4, 1e-9)
    assert made.costs.decode == (3e-3, 1e-4, 1e-8)
    assert (made.prefill_error, made.decode_error) == (0.07, 0.04)
    assert made.kv_tokens == 1600
    assert transfer == (1e-3, 2e-10)
    save(tmp_path / "mine.json", made)
    assert hardware(str(tmp_path / "mine.json")) == made
    assert "prefill 7.0 %, decode 4.0 %" in made.describe()


def test_a_fleet_that_computed_nothing_has_no_preset() -> None:
    few = CostModel(prefill_samples=TRUSTED_SAMPLES - 1)
    with pytest.raises(NotMeasuredError, match="prompts"):
        preset("mine", [_view("p", WorkerRole.PREFILL, few)], [])


def test_a_file_that_is_no_preset_is_named(tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(UnknownHardwareError, match="holds no hardware"):
        hardware(str(tmp_path / "bad.json"))
