"""Workers that come, drain, leave and change roles while requests run, and who sees it."""

from collections.abc import Callable, Sequence

import pytest

from sim.admission import SimDesk
from sim.mesh import SimMesh
from sim.observe import Observation, Role, Stage
from sim.outcome import Outcome
from sim.setup import PolicySpec
from sim.workload import SimRequest
from tests.sim.worlds import BLOCK, NO_DELAY, fleet


def _mesh(outcomes: list[Outcome], prefill: int, decode: int, *, opens: bool = True) -> SimMesh:
    policies = PolicySpec("weighted", admits_all=opens).make(1)
    spec = fleet(prefill, decode, kv_tokens=16_384)
    return SimMesh(spec, BLOCK, policies, outcomes.append, timing=NO_DELAY)


def _requests(count: int, every_s: float = 0.2) -> list[SimRequest]:
    return [SimRequest(every_s * n, 400, 20) for n in range(count)]


def _run(
    act: Callable[[SimMesh, Observation], None], requests: Sequence[SimRequest]
) -> tuple[SimMesh, list[Outcome], list[Observation]]:
    """Runs on 1P+2D, acting once after a second of simulated time."""
    outcomes: list[Outcome] = []
    seen: list[Observation] = []
    mesh = _mesh(outcomes, 1, 2)

    def control(observation: Observation) -> None:
        seen.append(observation)
        if len(seen) == 1:
            act(mesh, observation)

    mesh.every(1.0, control)
    mesh.run(iter(requests))
    return mesh, outcomes, seen


def test_a_worker_joins_when_it_is_ready_and_takes_work() -> None:
    _, outcomes, seen = _run(
        lambda mesh, now: mesh.roster.add(Role.PREFILL, ready_in_s=2.5), _requests(40)
    )
    assert [it.pending(Role.PREFILL) for it in seen[:4]] == [0, 1, 1, 0]
    assert [len(it.of(Role.PREFILL)) for it in seen[:4]] == [1, 1, 1, 2]
    assert {it.prefill_worker for it in outcomes} == {"prefill-0", "prefill-1"}


def test_a_drained_worker_ends_its_work_and_leaves() -> None:
    requests = _requests(40)
    mesh, outcomes, seen = _run(lambda mesh, now: mesh.roster.drain("decode-0"), requests)
    assert len(outcomes) == len(requests)
    assert all(it.ending == "SERVED" for it in outcomes)
    assert "decode-0" not in mesh.roster.sights
    late = [it for it in outcomes if it.request.arrival_s > 1.0]
    assert {it.decode_worker for it in late} == {"decode-1"}
    [gone] = mesh.roster.gone
    assert gone.left_s is not None
    assert mesh.gpu_seconds == pytest.approx(2 * mesh.loop.now_s + gone.left_s)
    assert [it.name for it in seen[-1].of(Role.DECODE)] == ["decode-1"]


def test_a_flipped_worker_comes_back_in_its_new_role() -> None:
    mesh, outcomes, _ = _run(
        lambda mesh, now: mesh.roster.flip("decode-0", Role.PREFILL, ready_in_s=0.5), _requests(40)
    )
    assert sorted(mesh.roster.sights) == ["decode-1", "prefill-0", "prefill-1"]
    assert "prefill-1" in {it.prefill_worker for it in outcomes}


def test_the_last_worker_that_decodes_cannot_be_drained() -> None:
    mesh = _mesh([], 1, 1)
    with pytest.raises(ValueError, match="last worker"):
        mesh.roster.drain("decode-0")


def test_a_prefill_worker_may_leave_for_good() -> None:
    _, outcomes, _ = _run(lambda mesh, now: mesh.roster.drain("prefill-0"), _requests(20))
    late = [it for it in outcomes if it.request.arrival_s > 1.0]
    assert not any(it.is_remote for it in late)


def test_controllers_stop_with_the_last_request() -> None:
    mesh, _, seen = _run(lambda mesh, now: None, _requests(10))
    assert mesh.loop.now_s - seen[-1].now_s <= 1.0
    assert seen[-1].offered == 10


def test_admission_learns_of_the_pools_sizes_and_sees_the_true_state() -> None:
    sizes: list[tuple[int, int]] = []
    outcomes: list[Outcome] = []
    mesh = _mesh(outcomes, 1, 2, opens=False)
    assert isinstance(mesh.desk, SimDesk)
    resize = mesh.desk.resize
    stages = []

    def noted(prefill: int, decode: int) -> None:
        sizes.append((prefill, decode))
        resize(prefill, decode)

    mesh.desk.resize = noted  # type: ignore[method-assign] - a spy on the real desk

    def control(observation: Observation) -> None:
        if not sizes:
            mesh.roster.add(Role.DECODE)
        stages.extend((it.stage, it.generated_tokens) for it in mesh.live_requests())

    mesh.every(0.15, control)
    mesh.run(iter(_requests(3)))
    assert sizes == [(1, 3)]
    assert (Stage.PREFILLING, 0) in stages
    assert any(stage is Stage.DECODING and generated > 1 for stage, generated in stages)
