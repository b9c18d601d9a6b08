"""The official OpenAI client against the gateway, a router and a scripted worker."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import openai
import pytest

from baton.api_keys import ApiKeys, digest_of
from baton.config import Config
from baton.errors import OverloadedError
from baton.v1 import types_pb2
from tests.support.control_plane import Call, ControlPlane, FakeDecodeWorker, control_plane
from tests.support.gateway import running_gateway
from tests.support.waiting import eventually

MODEL = "baton-tiny"
HELLO: Any = [{"role": "user", "content": "What does open do?"}]


@dataclass
class Served:
    """A gateway with what is behind it."""

    url: str
    plane: ControlPlane
    worker: FakeDecodeWorker
    client: openai.AsyncOpenAI

    def as_(self, key: str) -> openai.AsyncOpenAI:
        client = openai.AsyncOpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0)
        self.plane.stack.push_async_callback(client.close)
        return client


@asynccontextmanager
async def serving(
    redis_url: str, keys: ApiKeys | None = None, script: Any = None
) -> AsyncIterator[Served]:
    async with control_plane(redis_url) as plane:
        worker = await plane.decode("decode-0", script)
        await plane.admission()
        router = await plane.router()
        async with running_gateway(router.address, keys) as url:
            client = openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0)
            async with client:
                yield Served(url, plane, worker, client)


async def test_chat_answers_with_usage_and_a_reason(redis_url: str) -> None:
    async with serving(redis_url) as served:
        answer = await served.client.chat.completions.create(
            model=MODEL, messages=HELLO, max_completion_tokens=5, temperature=0
        )
        assert answer.object == "chat.completion"
        assert answer.choices[0].message.role == "assistant"
        assert answer.choices[0].message.content
        assert answer.choices[0].finish_reason == "length"
        assert answer.usage is not None
        assert answer.usage.completion_tokens == 5
        assert answer.usage.total_tokens == answer.usage.prompt_tokens + 5
        assert answer.usage.prompt_tokens_details is not None
        assert answer.usage.prompt_tokens_details.cached_tokens == 0
        start = served.worker.starts[0]
        assert answer.id == start.request_id
        assert start.sampling_params.max_tokens == 5


async def test_cached_tokens_are_those_of_the_worker(redis_url: str) -> None:
    async def generate(worker: FakeDecodeWorker, call: Call) -> None:
        await worker.send_prefilled(call, cached_tokens=3)
        await worker.send_token(call)
        await worker.send_finished(call, types_pb2.FINISH_REASON_STOP)

    async with serving(redis_url, script=generate) as served:
        answer = await served.client.chat.completions.create(model=MODEL, messages=HELLO)
        assert answer.usage is not None
        assert answer.usage.prompt_tokens_details is not None
        assert answer.usage.prompt_tokens_details.cached_tokens == 3
        assert answer.choices[0].finish_reason == "stop"


async def test_a_stream_gives_the_text_of_the_whole_answer_then_usage(redis_url: str) -> None:
    async with serving(redis_url) as served:
        whole = await served.client.chat.completions.create(
            model=MODEL, messages=HELLO, max_tokens=6
        )
        stream = await served.client.chat.completions.create(
            model=MODEL,
            messages=HELLO,
            max_tokens=6,
            stream=True,
            stream_options={"include_usage": True},
        )
        chunks = [chunk async for chunk in stream]
        assert chunks[0].choices[0].delta.role == "assistant"
        text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
        assert text == whole.choices[0].message.content
        assert chunks[-2].choices[0].finish_reason == "length"
        assert chunks[-1].choices == []
        assert chunks[-1].usage is not None
        assert chunks[-1].usage.completion_tokens == 6
        assert len({chunk.id for chunk in chunks}) == 1


async def test_text_completion_whole_streamed_and_by_token_ids(redis_url: str) -> None:
    async with serving(redis_url) as served:
        create = served.client.completions.create
        whole = await create(model=MODEL, prompt="The with statement", max_tokens=4)
        stream = await create(model=MODEL, prompt="The with statement", max_tokens=4, stream=True)
        assert "".join([c.choices[0].text async for c in stream]) == whole.choices[0].text
        await create(model=MODEL, prompt=[5, 6, 7], max_tokens=1)
        assert list(served.worker.starts[-1].input_ids) == [5, 6, 7]


async def test_models_are_listed_and_found_by_name(redis_url: str) -> None:
    async with serving(redis_url) as served:
        models = await served.client.models.list()
        assert [model.id for model in models.data] == [MODEL]
        assert (await served.client.models.retrieve(MODEL)).owned_by == "baton"
        with pytest.raises(openai.NotFoundError):
            await served.client.models.retrieve("gpt-x")


async def test_parameters_reach_the_worker(redis_url: str) -> None:
    async with serving(redis_url) as served:
        await served.client.chat.completions.create(
            model=MODEL,
            messages=[{"role": "developer", "content": [{"type": "text", "text": "Be brief."}]},
                      *HELLO],
            max_tokens=3, temperature=0.5, top_p=0.9, seed=7, stop=["zzz"],
            service_tier="priority",
            extra_body={"top_k": 11, "min_p": 0.1, "ignore_eos": True, "stop_token_ids": [2]},
        )  # fmt: skip
        start = served.worker.starts[0]
        params = start.sampling_params
        assert (params.temperature, params.top_p, params.seed) == (0.5, 0.9, 7)
        assert (params.top_k, params.min_p, params.ignore_eos) == (11, 0.1, True)
        assert list(params.stop_token_ids) == [2]
        assert start.priority == types_pb2.PRIORITY_HIGH


TOOL = {"type": "function", "function": {"name": "f", "parameters": {}}}
SCHEMA = {"type": "json_schema", "json_schema": {"name": "s", "schema": {}}}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("tools", [TOOL]),
        ("tool_choice", "required"),
        ("response_format", SCHEMA),
        ("response_format", {"type": "json_object"}),
        ("n", 2),
        ("logprobs", True),
        ("presence_penalty", 0.5),
        ("frequency_penalty", 0.5),
        ("logit_bias", {"1": 5}),
        ("modalities", ["text", "audio"]),
        ("store", True),
        ("invented", 1),
    ],
)
async def test_what_is_not_carried_out_is_refused_by_name(
    redis_url: str, field: str, value: Any
) -> None:
    async with serving(redis_url) as served:
        with pytest.raises(openai.BadRequestError) as caught:
            await served.client.chat.completions.create(
                model=MODEL, messages=HELLO, extra_body={field: value}
            )
        assert caught.value.param == field
        assert caught.value.code == "unsupported_field"
        assert not served.worker.starts


async def test_values_that_ask_for_nothing_are_taken(redis_url: str) -> None:
    async with serving(redis_url) as served:
        await served.client.chat.completions.create(
            model=MODEL, messages=HELLO, max_tokens=1, n=1, logprobs=False, tools=[],
            response_format={"type": "text"}, presence_penalty=0, user="u",
        )  # fmt: skip


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"messages": HELLO, "temperature": 3}, "temperature"),
        ({"messages": HELLO, "max_tokens": 0}, "max_tokens"),
        ({"messages": HELLO, "max_tokens": -1}, "max_tokens"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
         "messages[0].content"),
        ({"messages": HELLO, "top_p": "x"}, "top_p"),
    ],
)  # fmt: skip
async def test_bad_input_names_the_field(redis_url: str, body: Any, param: str) -> None:
    async with serving(redis_url) as served:
        with pytest.raises(openai.BadRequestError) as caught:
            await served.client.post(
                "/chat/completions", body={"model": MODEL, **body}, cast_to=object
            )
        assert str(caught.value.param).startswith(param)


async def test_an_unknown_model_is_not_found(redis_url: str) -> None:
    async with serving(redis_url) as served:
        with pytest.raises(openai.NotFoundError) as caught:
            await served.client.chat.completions.create(model="gpt-x", messages=HELLO)
        assert caught.value.code == "model_not_found"


async def test_overload_is_429_with_retry_after(redis_url: str) -> None:
    async def shed(worker: FakeDecodeWorker, call: Call) -> None:
        raise OverloadedError("full", reason="QUEUE_FULL", retry_after_s=1.2)

    async with serving(redis_url, script=shed) as served:
        for is_streaming in (False, True):
            with pytest.raises(openai.RateLimitError) as caught:
                await served.client.chat.completions.create(
                    model=MODEL, messages=HELLO, stream=is_streaming
                )
            assert caught.value.code == "queue_full"
            assert caught.value.response.headers["retry-after"] == "2"
            assert caught.value.response.headers["retry-after-ms"] == "1200"


async def test_without_workers_it_is_503_and_not_ready(redis_url: str) -> None:
    async with control_plane(redis_url) as plane:
        router = await plane.router(Config())
        async with running_gateway(router.address) as url:
            client = openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="x", max_retries=0)
            async with client:
                with pytest.raises(openai.InternalServerError) as caught:
                    await client.chat.completions.create(model=MODEL, messages=HELLO)
                assert caught.value.status_code == 503
                with pytest.raises(openai.InternalServerError):
                    await client.get(f"{url}/readyz", cast_to=object)


async def test_a_failure_in_mid_stream_ends_it_with_an_error_event(redis_url: str) -> None:
    async def fail(worker: FakeDecodeWorker, call: Call) -> None:
        await worker.send_prefilled(call)
        await worker.send_token(call)
        raise OverloadedError("full", reason="QUEUE_FULL")

    async with serving(redis_url, script=fail) as served:
        stream = await served.client.chat.completions.create(
            model=MODEL, messages=HELLO, stream=True, max_tokens=5
        )
        with pytest.raises(openai.APIError):
            async for _ in stream:
                pass


@pytest.mark.parametrize("is_streaming", [False, True])
async def test_a_client_that_leaves_ends_its_request(redis_url: str, is_streaming: bool) -> None:
    async with serving(redis_url) as served:
        served.worker.allow(2)
        client = served.as_("x")
        if is_streaming:
            stream = await client.chat.completions.create(
                model=MODEL, messages=HELLO, stream=True, max_tokens=50
            )
            await anext(aiter(stream))
            await stream.close()
        else:
            with pytest.raises(openai.APITimeoutError):
                await client.chat.completions.create(
                    model=MODEL, messages=HELLO, max_tokens=50, timeout=0.3
                )
        await eventually(lambda: served.worker.cancelled == 1 and not served.worker.active)


async def test_keys_stand_for_tenants_and_others_stay_out(redis_url: str) -> None:
    keys = ApiKeys(((digest_of("baton-a"), "acme"), (digest_of("baton-o"), "operator")))
    async with serving(redis_url, keys) as served:
        with pytest.raises(openai.AuthenticationError):
            await served.client.models.list()
        with pytest.raises(openai.AuthenticationError):
            await served.client.chat.completions.create(model=MODEL, messages=HELLO)
        acme, operator = served.as_("baton-a"), served.as_("baton-o")
        await acme.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=1)
        with pytest.raises(openai.PermissionDeniedError):
            await acme.get(f"{served.url}/console/api/snapshot", cast_to=object)
        snapshot: Any = await operator.get(f"{served.url}/console/api/snapshot", cast_to=object)
        assert [request["tenant"] for request in snapshot["requests"]] == ["acme"]


async def test_the_console_shows_requests_and_explains_them(redis_url: str) -> None:
    async with serving(redis_url) as served:
        answer = await served.client.chat.completions.create(
            model=MODEL, messages=HELLO, max_tokens=2
        )
        snapshot: Any = await served.client.get(
            f"{served.url}/console/api/snapshot", cast_to=object
        )
        (shown,) = snapshot["requests"]
        assert shown["request_id"] == answer.id
        assert shown["met_targets"] is True
        assert sum(shown["timing"]["parts"].values()) == pytest.approx(shown["timing"]["ttft_s"])
        assert [worker["worker_id"] for worker in snapshot["fleet"]["workers"]] == ["decode-0"]
        explained: Any = await served.client.get(
            f"{served.url}/console/api/explain/{answer.id}", cast_to=object
        )
        assert explained["decisions"][0]["decode"]["worker_id"] == "decode-0"
        with pytest.raises(openai.BadRequestError):
            await served.client.get(f"{served.url}/console/api/explain/nobody", cast_to=object)


async def test_a_body_that_is_no_json_object_is_refused(redis_url: str) -> None:
    async with serving(redis_url) as served:
        for content in (b"{", json.dumps([1]).encode()):
            with pytest.raises(openai.BadRequestError):
                await served.client.post(
                    "/chat/completions",
                    cast_to=object,
                    content=content,
                    options={"headers": {"content-type": "application/json"}},
                )
