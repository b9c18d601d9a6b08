"""Why requests went where they went: kept, asked for, printed; and asking without running."""

import asyncio
import json
import random
import re
from dataclasses import replace

import grpc
import pytest
from click.testing import Result
from typer.testing import CliRunner

from baton.cli.explain import options_table, outcome_text, show
from baton.cli.main import app
from baton.client import RouterClient
from baton.config import Config, SplitPolicy
from baton.errors import InvalidRequestError, UnavailableError
from baton.latency import TRUSTED_SAMPLES, CostModel
from baton.rpc.status import from_rpc_error
from baton.state.records import WorkerRole
from baton.v1 import router_pb2, types_pb2
from services.router.explanations import MAX_EXPLAINED, Explanations, Outcome
from services.router.policies.latency import LatencyPolicy, LatencySettings
from services.router.policy import Decision, DecodeView, RouteRequest
from services.router.sessions import Sessions
from tests.support.control_plane import Call, ControlPlane, FakeDecodeWorker, control_plane
from tests.support.mesh import Client, greedy
from tests.support.waiting import eventually

MEASURED = CostModel(
    prefill=(0.001, 1e-4, 0.0),
    step=(0.004, 1e-4, 0.0),
    prefill_samples=TRUSTED_SAMPLES,
    step_samples=TRUSTED_SAMPLES,
)


def decided() -> Decision:
    policy = LatencyPolicy(LatencySettings(), random.Random(1))
    return policy.choose(RouteRequest(10), [], [DecodeView("d", "i", "d:1")])


def test_explanations_are_bounded_and_the_latest_stay() -> None:
    kept = Explanations(limit=3)
    for number in range(5):
        kept.placed(f"r{number}", decided(), 10)
        kept.ended(f"r{number}", Outcome())
    assert len(kept) == 3
    assert kept.get("r1") is None
    assert kept.get("r4") is not None
    kept.ended("unknown", Outcome())
    assert MAX_EXPLAINED >= 1000


def test_second_placement_of_a_running_request_is_another_attempt() -> None:
    kept = Explanations(wall_clock=lambda: 5.0)
    kept.placed("r", decided(), 10)
    kept.placed("r", decided(), 12)
    explained = kept.get("r")
    assert explained is not None
    assert [it.prompt_tokens for it in explained.placements] == [10, 12]
    kept.ended("r", Outcome())
    kept.placed("r", decided(), 14)
    again = kept.get("r")
    assert again is not None
    assert [it.prompt_tokens for it in again.placements] == [14], "a new request of that name"
    assert again.outcome is None


def test_sessions_are_bounded_and_apart_by_tenant() -> None:
    sessions = Sessions(limit=2)
    sessions.served("t", "", "d0")
    assert len(sessions) == 0
    sessions.served("t", "a", "d0")
    sessions.served("u", "a", "d1")
    assert (sessions.worker_of("t", "a"), sessions.worker_of("u", "a")) == ("d0", "d1")
    sessions.served("t", "b", "d2")
    assert sessions.worker_of("t", "a") == ""
    assert sessions.worker_of("t", "") == ""


async def placed(plane: ControlPlane, workers: int = 2) -> tuple[Client, RouterClient]:
    for number in range(workers):
        worker = await plane.decode(f"decode-{number}", local)
        await worker.publish(costs=replace(MEASURED, step=(0.004 * (number + 1), 1e-4, 0.0)))
    await plane.admission()
    router = await plane.router()
    await eventually(
        lambda: all(
            (view := router.fleet.worker(f"decode-{n}")) is not None
            and view.stats is not None
            and view.stats.costs is not None
            for n in range(workers)
        )
    )
    client = await plane.client(router)
    return client, await plane.stack.enter_async_context(RouterClient(router.address))


async def local(worker: FakeDecodeWorker, call: Call) -> None:
    await worker.send_prefilled(
        call,
        reason="LOCAL_FASTER",
        cached_tokens=3,
        predicted_local_ttft_s=0.02,
        predicted_remote_ttft_s=0.03,
    )
    for _ in range(call.start.start.sampling_params.max_tokens):
        await worker.take_token()
        await worker.send_token(call)
    await worker.send_finished(call, types_pb2.FINISH_REASON_LENGTH)


async def test_request_is_explained_with_terms_winner_and_outcome(
    redis_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    async with control_plane(redis_url) as plane:
        client, asking = await placed(plane)
        await client.generate(input_ids=[5] * 100, sampling_params=greedy(3), request_id="mine")
        explained = await asking.explain("mine")
        (decision,) = explained.decisions
        assert (decision.policy, decision.prompt_tokens) == ("latency", 100)
        assert decision.decode.worker_id == "decode-0", "its steps are shorter"
        assert decision.chosen in decision.options
        assert {it.decode_worker_id for it in decision.options} == {"decode-0", "decode-1"}
        assert decision.chosen.prefill.ToNanoseconds() == pytest.approx(11e6, rel=0.01)
        assert decision.chosen.tpot.ToNanoseconds() == pytest.approx(4.1e6, rel=0.01)
        assert decision.decided_at.ToNanoseconds() > 1.7e18
        outcome = explained.outcome
        assert outcome.error_type == ""
        assert outcome.placement.prefill_reason == "LOCAL_FASTER"
        assert outcome.cached_tokens == 3
        actual_s = outcome.ttft.ToNanoseconds() / 1e9
        assert actual_s > 0
        assert outcome.prediction_error == pytest.approx(abs(0.011 - actual_s) / actual_s, rel=0.01)
        assert outcome.remote_ttft.ToNanoseconds() == pytest.approx(30e6)
        assert outcome.HasField("tpot")
        show(explained)
        printed = capsys.readouterr().out
        assert re.search(r">\s+local\s+decode-0\s+11\.0", printed), printed
        assert "prediction off by" in printed
        assert "20.0 ms local, 30.0 ms remote" in printed


async def test_command_prints_a_table_or_json_or_one_clear_line(redis_url: str) -> None:
    async with control_plane(redis_url) as plane:
        client, asking = await placed(plane)
        await client.generate(input_ids=[5] * 100, sampling_params=greedy(3), request_id="mine")

        async def run(*words: str) -> Result:
            command = ["explain", *words, "--router", asking.address]
            return await asyncio.to_thread(CliRunner().invoke, app, command)

        table = await run("mine")
        assert table.exit_code == 0
        assert "mine: 100 tokens, policy latency, decode worker decode-0" in table.output
        values = json.loads((await run("mine", "--json")).output)
        assert values["decisions"][0]["policy"] == "latency"
        unknown = await run("nobody")
        assert unknown.exit_code == 1
        assert "UNKNOWN_REQUEST" in unknown.output


async def test_running_request_has_no_outcome_yet_and_an_unknown_one_is_refused(
    redis_url: str,
) -> None:
    async with control_plane(redis_url) as plane:
        held = await plane.decode("decode-0", local)
        held.allow(1)
        client = await plane.client(router := await plane.router())
        asking = await plane.stack.enter_async_context(RouterClient(router.address))
        stream = client.stub.Generate(
            router_pb2.GenerateRequest(
                input_ids=[5], sampling_params=greedy(9), request_id="running"
            )
        )
        await stream.read()
        explained = await asking.explain("running")
        assert not explained.HasField("outcome")
        assert outcome_text(explained) == "outcome: still running"
        stream.cancel()

        async def has_ended() -> bool:
            return (await asking.explain("running")).outcome.error_type == "CANCELLED"

        await eventually(has_ended)
        with pytest.raises(InvalidRequestError) as caught:
            await asking.explain("nobody")
        assert (caught.value.reason, caught.value.field) == ("UNKNOWN_REQUEST", "request_id")


async def test_policy_that_does_not_predict_is_explained_by_its_points(
    redis_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    async with control_plane(redis_url) as plane:
        await plane.decode("decode-0")
        router = await plane.router(Config(split_policy=SplitPolicy(policy="weighted")))
        client = await plane.client(router)
        asking = await plane.stack.enter_async_context(RouterClient(router.address))
        await client.generate(input_ids=[5], sampling_params=greedy(1), request_id="r")
        explained = await asking.explain("r")
        (decision,) = explained.decisions
        assert decision.policy == "weighted"
        assert not decision.HasField("chosen")
        assert decision.decode.score == 0
        assert options_table(decision).row_count == 0
        show(explained)
        assert "points" in capsys.readouterr().out


async def test_route_advises_without_running_or_reserving(redis_url: str) -> None:
    async with control_plane(redis_url) as plane:
        client, asking = await placed(plane)
        request = router_pb2.GenerateRequest(input_ids=[5] * 100, request_id="asked")
        response = await client.stub.Route(router_pb2.RouteRequest(request=request), timeout=5)
        assert response.decision.decode.worker_id == "decode-0"
        assert response.decision.decode.address.startswith("127.0.0.1:")
        assert response.decision.chosen.decode_worker_id == "decode-0"
        with pytest.raises(InvalidRequestError):
            await asking.explain("asked")
        bad = router_pb2.RouteRequest(request=router_pb2.GenerateRequest())
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await client.stub.Route(bad, timeout=5)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_route_without_workers_says_so(redis_url: str) -> None:
    async with control_plane(redis_url) as plane:
        client = await plane.client(await plane.router())
        request = router_pb2.RouteRequest(request=router_pb2.GenerateRequest(input_ids=[5]))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await client.stub.Route(request, timeout=5)
        error = from_rpc_error(caught.value)
        assert isinstance(error, UnavailableError)
        assert error.reason == "NO_WORKER"


async def test_session_comes_back_to_its_decode_worker(redis_url: str) -> None:
    async with control_plane(redis_url) as plane:
        for number in range(4):
            await plane.decode(f"decode-{number}")
        router = await plane.router()
        client = await plane.client(router)
        await eventually(lambda: len(router.fleet.workers(WorkerRole.DECODE)) == 4)

        async def served(session_id: str, salt: int) -> str:
            answer = await client.generate(
                input_ids=[5] * 40,
                sampling_params=greedy(1),
                session_id=session_id,
                cache_salt=str(salt),  # so that no cached prefix decides
            )
            return str(answer.placement.decode_worker_id)

        assert len({await served("s", salt) for salt in range(12)}) == 1
        assert len({await served("", salt) for salt in range(12, 36)}) > 1
