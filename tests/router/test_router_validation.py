"""Every bad input is refused with its field; what is good passes unchanged."""

from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration

from baton.errors import InvalidRequestError, UnknownModelError
from baton.requests import Priority
from baton.v1 import router_pb2, types_pb2
from services.router.incoming import fitted
from services.router.model import ServedModel, load_served_model
from services.router.validation import check_request, check_tokens

Message = router_pb2.ChatMessage
NAN, INF = float("nan"), float("inf")


@pytest.fixture(scope="module")
def model() -> ServedModel:
    return load_served_model("baton-tiny")


def request(**fields: Any) -> router_pb2.GenerateRequest:
    return router_pb2.GenerateRequest(**fields)


def sampled(**fields: Any) -> router_pb2.GenerateRequest:
    return request(text="a", sampling_params=types_pb2.SamplingParams(**fields))


def slo(**fields: Any) -> router_pb2.GenerateRequest:
    return request(text="a", slo=router_pb2.Slo(**fields))


BAD: list[tuple[str, router_pb2.GenerateRequest, str]] = [
    ("nothing given", request(), "text"),
    ("empty text", request(text=""), "text"),
    ("text and ids", request(text="a", input_ids=[1]), "input_ids"),
    ("empty text and ids", request(text="", input_ids=[1]), "input_ids"),
    ("text and messages", request(text="a", messages=[Message(role="user")]), "messages"),
    ("ids and messages", request(input_ids=[1], messages=[Message(role="user")]), "input_ids"),
    ("unknown role", request(messages=[Message(role="tool", content="x")]), "messages[0].role"),
    ("no role", request(messages=[Message(role="user"), Message()]), "messages[1].role"),
    ("priority", request(text="a", priority=17), "priority"),
    ("negative priority", request(text="a", priority=-1), "priority"),
    ("long request_id", request(text="a", request_id="x" * 257), "request_id"),
    ("control character", request(text="a", request_id="a\nb"), "request_id"),
    ("long tenant", request(text="a", tenant="x" * 257), "tenant"),
    ("long session", request(text="a", session_id="x" * 257), "session_id"),
    ("long salt", request(text="a", cache_salt="x" * 257), "cache_salt"),
    ("zero ttft", slo(ttft=Duration()), "slo.ttft"),
    ("negative ttft", slo(ttft=Duration(seconds=-1)), "slo.ttft"),
    ("negative nanos", slo(tpot=Duration(nanos=-1)), "slo.tpot"),
    ("mixed signs", slo(tpot=Duration(seconds=1, nanos=-1)), "slo.tpot"),
    ("nanos out of range", slo(tpot=Duration(nanos=2_000_000_000)), "slo.tpot"),
    ("beyond all ages", slo(ttft=Duration(seconds=2**62)), "slo.ttft"),
    ("no tokens wanted", sampled(max_tokens=0), "sampling_params.max_tokens"),
    ("cold", sampled(temperature=-0.1), "sampling_params.temperature"),
    ("hot", sampled(temperature=2.01), "sampling_params.temperature"),
    ("NaN temperature", sampled(temperature=NAN), "sampling_params.temperature"),
    ("infinite temperature", sampled(temperature=INF), "sampling_params.temperature"),
    ("top_p 0", sampled(top_p=0.0), "sampling_params.top_p"),
    ("top_p above 1", sampled(top_p=1.1), "sampling_params.top_p"),
    ("NaN top_p", sampled(top_p=NAN), "sampling_params.top_p"),
    ("top_k 0", sampled(top_k=0), "sampling_params.top_k"),
    ("negative min_p", sampled(min_p=-0.1), "sampling_params.min_p"),
    ("min_p above 1", sampled(min_p=1.5), "sampling_params.min_p"),
    ("NaN min_p", sampled(min_p=NAN), "sampling_params.min_p"),
    ("too many stops", sampled(stop=["x"] * 17), "sampling_params.stop"),
    ("empty stop", sampled(stop=["x", ""]), "sampling_params.stop"),
    ("too many stop ids", sampled(stop_token_ids=[1] * 65), "sampling_params.stop_token_ids"),
    ("stop id out of range", sampled(stop_token_ids=[4096]), "sampling_params.stop_token_ids"),
]


@pytest.mark.parametrize(
    ("message", "field"), [pytest.param(*case[1:], id=case[0]) for case in BAD]
)
def test_bad_input_is_refused_with_its_field(
    model: ServedModel, message: router_pb2.GenerateRequest, field: str
) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        check_request(message, model)
    assert caught.value.field == field
    assert len(caught.value.message) > 20


def test_unknown_model_names_the_known_one(model: ServedModel) -> None:
    with pytest.raises(UnknownModelError, match="baton-tiny") as caught:
        check_request(request(text="a", model="gpt-9"), model)
    assert caught.value.field == "model"


@pytest.mark.parametrize(
    ("ids", "is_valid"),
    [([], False), ([4095], True), ([4096], False), ([1] * 99, True), ([1] * 100, False)],
)
def test_tokens_must_fit_model_and_context(ids: list[int], is_valid: bool) -> None:
    if is_valid:
        check_tokens("input_ids", ids, context_length=100, vocab_size=4096)
        return
    with pytest.raises(InvalidRequestError) as caught:
        check_tokens("input_ids", ids, context_length=100, vocab_size=4096)
    assert caught.value.field == "input_ids"


def test_unset_fields_take_the_documented_defaults(model: ServedModel) -> None:
    incoming = check_request(request(text="a"), model)
    sampling = incoming.sampling
    assert incoming.request_id.startswith("req-")
    assert incoming.priority is Priority.NORMAL
    assert (incoming.ttft_slo_s, incoming.tpot_slo_s) == (None, None)
    assert (sampling.max_tokens, sampling.temperature, sampling.top_p) == (256, 1.0, 1.0)
    assert (sampling.top_k, sampling.min_p, sampling.seed) == (None, 0.0, None)


def test_given_fields_arrive(model: ServedModel) -> None:
    message = request(
        request_id="mine",
        model="baton-tiny",
        messages=[Message(role="user", content="Hi")],
        sampling_params=types_pb2.SamplingParams(
            max_tokens=5, temperature=0.0, top_k=1, seed=0, stop=["x"], logprobs=True
        ),
        priority=types_pb2.PRIORITY_HIGH,
        slo=router_pb2.Slo(ttft=Duration(nanos=500_000_000)),
        tenant="t",
        cache_salt="s",
    )
    incoming = check_request(message, model)
    assert (incoming.request_id, incoming.tenant, incoming.cache_salt) == ("mine", "t", "s")
    assert (incoming.operation, incoming.priority) == ("chat", Priority.HIGH)
    assert incoming.ttft_slo_s == 0.5
    assert incoming.sampling.temperature == 0.0
    assert incoming.sampling.seed == 0
    assert incoming.sampling.stop == ("x",)


def test_parameters_are_fitted_to_model_and_room(model: ServedModel) -> None:
    sampling = check_request(sampled(max_tokens=2**32 - 1, top_k=9999), model).sampling
    result = fitted(sampling, room_tokens=10, vocab_size=4096)
    assert (result.max_tokens, result.top_k) == (10, None)
