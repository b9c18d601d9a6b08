"""The whole mesh as processes: text, tokens, accounting and traces of ordinary requests."""

import asyncio
from typing import Any

import grpc
import pytest

from baton.rpc.status import from_rpc_error
from baton.telemetry import names
from baton.v1 import router_pb2, types_pb2
from tests.e2e.conftest import Mesh
from tests.support.mesh import Client, greedy, seconds
from tests.support.waiting import eventually

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="module")]

_PRIVATE_TRACE_ID = "22222222222222222222222222222222"
_SECRET = "Xylophone heptagon Zanzibar quixotic " * 3

SHORT = "The import statement"


async def test_long_prompt_is_prefilled_remotely_with_the_reference_tokens(
    mesh: Mesh, client: Client
) -> None:
    prompt = mesh.prompt(700)
    answer = await client.generate(input_ids=prompt, sampling_params=greedy(24))
    assert answer.placement.prefill_mode == types_pb2.PREFILL_MODE_REMOTE
    assert answer.placement.kv_bytes > 0
    assert answer.output_ids == mesh.reference(prompt, 24)
    assert answer.complete.usage.prompt_tokens == 700
    assert answer.complete.usage.completion_tokens == 24


async def test_short_prompt_stays_local_with_the_reference_tokens(
    mesh: Mesh, client: Client
) -> None:
    answer = await client.generate(text=SHORT, sampling_params=greedy(24))
    assert answer.placement.prefill_mode == types_pb2.PREFILL_MODE_LOCAL
    assert answer.placement.kv_bytes == 0
    ids = mesh.encode(SHORT)
    assert answer.output_ids == mesh.reference(ids, 24)
    assert answer.text == mesh.decode(answer.output_ids)


async def test_repeated_prompt_moves_only_what_the_decode_worker_lacks(
    mesh: Mesh, client: Client
) -> None:
    prompt = mesh.prompt(800)
    first = await client.generate(input_ids=prompt, sampling_params=greedy(8))
    longer = prompt + mesh.prompt(600)
    second = await client.generate(input_ids=longer, sampling_params=greedy(8))
    assert second.placement.prefill_mode == types_pb2.PREFILL_MODE_REMOTE
    assert second.complete.usage.cached_tokens >= 784
    assert second.placement.kv_bytes < first.placement.kv_bytes
    assert second.output_ids == mesh.reference(longer, 8)


async def test_chat_is_formatted_by_the_models_template(mesh: Mesh, client: Client) -> None:
    answer = await client.generate(
        messages=[router_pb2.ChatMessage(role="user", content="What is a list?")],
        sampling_params=greedy(16),
    )
    assert answer.text
    assert answer.complete.usage.prompt_tokens > len(mesh.encode("What is a list?"))


async def test_ttft_parts_add_up(mesh: Mesh, client: Client) -> None:
    answer = await client.generate(input_ids=mesh.prompt(600), sampling_params=greedy(8))
    timing = seconds(answer.complete.timing)
    ttft, tpot, total = timing.pop("ttft"), timing.pop("tpot"), timing.pop("total")
    assert sum(timing.values()) == pytest.approx(ttft, abs=1e-6)
    assert 0 < ttft <= total
    assert tpot == pytest.approx((total - ttft) / 7, rel=0.2)
    assert timing["prefill_compute"] > 0


async def test_sixteen_concurrent_requests_get_their_own_answers(
    mesh: Mesh, client: Client
) -> None:
    prompts = [mesh.prompt(40 + 60 * i) for i in range(16)]
    answers = await asyncio.gather(
        *(client.generate(input_ids=p, sampling_params=greedy(12)) for p in prompts)
    )
    assert [a.output_ids for a in answers] == [mesh.reference(p, 12) for p in prompts]


async def test_cancel_after_the_first_token_leaves_nothing_behind(
    mesh: Mesh, client: Client
) -> None:
    async def cancel_after_first(prompt: list[int]) -> None:
        stream = client.stub.Generate(
            router_pb2.GenerateRequest(input_ids=prompt, sampling_params=greedy(400))
        )
        async for response in stream:
            assert response.WhichOneof("part") == "chunk"
            if response.chunk.output_ids:
                stream.cancel()
                break

    await asyncio.gather(*(cancel_after_first(mesh.prompt(100 + 150 * i)) for i in range(6)))
    await eventually(mesh.is_clean, timeout_s=10)


async def test_one_trace_crosses_all_four_services(mesh: Mesh, client: Client) -> None:
    trace_id = "0af7651916cd43dd8448eb211c80319c"
    answer = await client.generate(
        input_ids=mesh.prompt(900),
        sampling_params=greedy(6),
        metadata=[("traceparent", f"00-{trace_id}-b7ad6b7169203331-01")],
    )
    # A gRPC client does not pass the gateway.
    wanted = names.SPANS.keys() - {names.SPAN_GATEWAY}
    spans = await mesh.trace(bytes.fromhex(trace_id), *wanted)
    by_name: dict[str, Any] = {span.name: span for span in spans}
    services = {mesh.otlp.services[span.span_id] for span in spans}
    assert len(services) == 4, services

    request = by_name[names.SPAN_REQUEST]
    assert request.parent_span_id.hex() == "b7ad6b7169203331"
    stages = {
        names.SPAN_ADMIT,
        names.SPAN_ROUTE,
        names.SPAN_PREFILL,
        names.SPAN_KV_TRANSFER,
        names.SPAN_DECODE,
    }
    for stage in stages:
        assert by_name[stage].parent_span_id == request.span_id, stage
    attributes = {item.key: item.value for item in request.attributes}
    parts = [
        value.double_value
        for key, value in attributes.items()
        if key.startswith(names.TTFT_PART_PREFIX)
    ]
    assert len(parts) == 8
    assert sum(parts) == pytest.approx(attributes[names.ATTR_TTFT_S].double_value, abs=1e-6)
    assert seconds(answer.complete.timing)["ttft"] == pytest.approx(sum(parts), abs=1e-6)


async def test_stop_string_ends_the_text_before_it(mesh: Mesh, client: Client) -> None:
    whole = await client.generate(text=SHORT, sampling_params=greedy(32))
    stop = whole.text[8:14]
    assert len(stop) == 6, whole.text
    answer = await client.generate(text=SHORT, sampling_params=greedy(32, stop=[stop]))
    assert answer.text == whole.text[: whole.text.index(stop)]
    assert answer.complete.finish_reason == types_pb2.FINISH_REASON_STOP


BAD_INPUT: list[tuple[str, dict[str, Any], grpc.StatusCode, str]] = [
    ("empty prompt", {"text": ""}, grpc.StatusCode.INVALID_ARGUMENT, "text"),
    ("no prompt", {}, grpc.StatusCode.INVALID_ARGUMENT, "text"),
    (
        "text and ids",
        {"text": "a", "input_ids": [5]},
        grpc.StatusCode.INVALID_ARGUMENT,
        "input_ids",
    ),
    ("too long", {"input_ids": [5] * 20_000}, grpc.StatusCode.INVALID_ARGUMENT, "input_ids"),
    ("ids out of range", {"input_ids": [2**31]}, grpc.StatusCode.INVALID_ARGUMENT, "input_ids"),
    ("unknown model", {"text": "a", "model": "gpt-9"}, grpc.StatusCode.NOT_FOUND, "model"),
    ("priority", {"text": "a", "priority": 17}, grpc.StatusCode.INVALID_ARGUMENT, "priority"),
    (
        "negative temperature",
        {"text": "a", "sampling_params": types_pb2.SamplingParams(temperature=-1)},
        grpc.StatusCode.INVALID_ARGUMENT,
        "sampling_params.temperature",
    ),
    (
        "absurd top_p",
        {"text": "a", "sampling_params": types_pb2.SamplingParams(top_p=float("nan"))},
        grpc.StatusCode.INVALID_ARGUMENT,
        "sampling_params.top_p",
    ),
    ("over the size limit", {"text": "a" * 9_000_000}, grpc.StatusCode.RESOURCE_EXHAUSTED, ""),
]


@pytest.mark.parametrize(
    ("request_", "code", "field"),
    [pytest.param(*case[1:], id=case[0]) for case in BAD_INPUT],
)
async def test_bad_input_is_refused_with_its_field(
    client: Client, request_: dict[str, Any], code: grpc.StatusCode, field: str
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await client.generate(**request_)
    assert caught.value.code() == code
    assert caught.value.details()
    assert from_rpc_error(caught.value).field == field  # empty where gRPC itself refused


async def test_deadline_already_passed_is_said_at_once(client: Client) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await client.generate(text=SHORT, timeout_s=0.0)
    assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED


async def test_deadline_ends_a_request_everywhere(mesh: Mesh, client: Client) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await client.generate(
            input_ids=mesh.prompt(3000), sampling_params=greedy(2000), timeout_s=0.3
        )
    assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    await eventually(mesh.is_clean, timeout_s=10)


async def test_generic_client_calls_through_reflection(mesh: Mesh) -> None:
    """What grpcurl and other generic clients do: no stubs, the server describes itself."""
    from google.protobuf import descriptor_pool, message_factory
    from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
        ProtoReflectionDescriptorDatabase,
    )

    def call() -> tuple[list[str], int]:
        with grpc.insecure_channel(mesh.router) as channel:
            database = ProtoReflectionDescriptorDatabase(channel)
            pool = descriptor_pool.DescriptorPool(database)
            service = pool.FindServiceByName("baton.v1.RouterService")
            method = service.FindMethodByName("ListModels")
            request = message_factory.GetMessageClass(method.input_type)()
            response_class = message_factory.GetMessageClass(method.output_type)
            answer = channel.unary_unary(
                "/baton.v1.RouterService/ListModels",
                request_serializer=lambda message: message.SerializeToString(),
                response_deserializer=response_class.FromString,
            )(request, timeout=5)
            return list(database.get_services()), len(answer.models)

    services, models = await asyncio.to_thread(call)
    assert "baton.v1.RouterService" in services
    assert "grpc.health.v1.Health" in services
    assert models == 1


async def test_no_log_span_or_metric_holds_a_prompt_or_an_answer(
    mesh: Mesh, client: Client
) -> None:
    # Last: the logs are those of all tests above.
    parent = ("traceparent", f"00-{_PRIVATE_TRACE_ID}-b7ad6b7169203331-01")
    answer = await client.generate(
        text=_SECRET, tenant="t1", sampling_params=greedy(24), metadata=[parent]
    )
    assert len(answer.text) > 20
    spans = await mesh.trace(
        bytes.fromhex(_PRIVATE_TRACE_ID), names.SPAN_REQUEST, names.SPAN_DECODE
    )
    told = [str(span) for span in spans] + [str(metric) for metric in mesh.otlp.metrics]
    told += [path.read_text(errors="replace") for path in mesh.stack.run_dir.glob("*.log")]
    assert any("baton" in text for text in told)
    for text in told:
        assert "Xylophone" not in text
        assert answer.text[:20] not in text
