"""What the router refuses at the door, with the field at fault and what to do about it."""

from collections.abc import Sequence
from functools import lru_cache
from itertools import starmap

from google.protobuf.duration_pb2 import Duration

from baton.blocks import all_below
from baton.errors import InvalidRequestError, UnknownModelError
from baton.requests import Priority, SamplingParams
from baton.rpc.packed import take_ids
from baton.v1 import router_pb2, types_pb2
from services.router.incoming import Incoming, Prompt, new_request_id
from services.router.model import ServedModel, Turn

MAX_NAME_LENGTH = 256
MAX_STOPS = 16
MAX_STOP_TOKEN_IDS = 64
MAX_TEMPERATURE = 2.0
ROLES = ("system", "user", "assistant")

_NAMES = ("request_id", "tenant", "session_id", "cache_salt")
_MAX_DURATION_S = 315_576_000_000
_NANOS = 1_000_000_000


def check_request(message: router_pb2.GenerateRequest, model: ServedModel) -> Incoming:
    """Returns the request; its prompt's length is checked later, by `check_tokens`.

    Raises InvalidRequestError or UnknownModelError.
    """
    if message.model not in ("", model.name):
        raise UnknownModelError(
            f"model {message.model!r} is not served here; use {model.name!r} or leave it empty",
            field="model",
        )
    for name in _NAMES:
        if value := getattr(message, name):
            _check_name(name, value)
    return Incoming(
        request_id=message.request_id or new_request_id(),
        prompt=_prompt(message),
        sampling=_sampling(message.sampling_params.SerializeToString(), model.vocab_size),
        priority=_priority(message.priority),
        ttft_slo_s=_target(message.slo, "ttft") if message.HasField("slo") else None,
        tpot_slo_s=_target(message.slo, "tpot") if message.HasField("slo") else None,
        tenant=message.tenant,
        session_id=message.session_id,
        cache_salt=message.cache_salt,
    )


def check_tokens(
    field: str, input_ids: Sequence[int], context_length: int, vocab_size: int
) -> None:
    """Checks the prompt's tokens. Raises InvalidRequestError naming the prompt's field."""
    if not input_ids:
        raise InvalidRequestError(
            "the prompt has no tokens; send at least one character or token", field=field
        )
    if len(input_ids) >= context_length:
        raise InvalidRequestError(
            f"the prompt has {len(input_ids)} tokens; with at least one token of answer the "
            f"model's context of {context_length} allows {context_length - 1}",
            field=field,
        )
    if not all_below(input_ids, vocab_size):
        raise InvalidRequestError(
            f"token id {max(input_ids)} is not below the vocabulary's size of {vocab_size}",
            field=field,
        )


def _prompt(message: router_pb2.GenerateRequest) -> Prompt:
    has_text, has_turns = message.HasField("text"), bool(message.messages)
    if message.input_ids and not (has_text or has_turns):
        return Prompt(input_ids=take_ids(message, "input_ids"))
    forms = (("text", has_text), ("messages", has_turns), ("input_ids", bool(message.input_ids)))
    given = [name for name, is_given in forms if is_given]
    if len(given) > 1:
        raise InvalidRequestError(
            f"{' and '.join(given)} are given; send exactly one of text, messages and input_ids",
            field=given[1],
        )
    if not given or (has_text and not message.text):
        raise InvalidRequestError(
            "the prompt is empty; send one of text, messages and input_ids", field="text"
        )
    return Prompt(message.text, tuple(starmap(_turn, enumerate(message.messages))))


def _turn(at: int, turn: router_pb2.ChatMessage) -> Turn:
    if turn.role not in ROLES:
        raise InvalidRequestError(
            f"unknown role {turn.role[:MAX_NAME_LENGTH]!r}; use one of {', '.join(ROLES)}",
            field=f"messages[{at}].role",
        )
    return Turn(turn.role, turn.content)


def _check_name(field: str, value: str) -> None:
    if len(value) > MAX_NAME_LENGTH:
        raise InvalidRequestError(
            f"{field} has {len(value)} characters; at most {MAX_NAME_LENGTH} are allowed",
            field=field,
        )
    if field == "request_id" and not value.isprintable():
        raise InvalidRequestError(
            "request_id has characters that cannot be printed; it appears in logs", field=field
        )


def _priority(number: int) -> Priority:
    try:
        return Priority(number or Priority.NORMAL)
    except ValueError:
        raise InvalidRequestError(
            f"unknown priority {number}; use LOW (1), NORMAL (2) or HIGH (3)", field="priority"
        ) from None


def _target(slo: router_pb2.Slo, name: str) -> float | None:
    if not slo.HasField(name):  # type: ignore[arg-type]  # the stub lists the names as literals
        return None
    duration: Duration = getattr(slo, name)
    seconds = duration.seconds + duration.nanos / _NANOS
    is_valid = abs(duration.nanos) < _NANOS and 0 < seconds <= _MAX_DURATION_S
    if not is_valid or (duration.seconds > 0 > duration.nanos):
        raise InvalidRequestError(
            f"slo.{name} must be a positive duration; leave it unset for the fleet's target",
            field=f"slo.{name}",
        )
    return seconds


@lru_cache(maxsize=1024)
def _sampling(encoded: bytes, vocab_size: int) -> SamplingParams:
    """Checks parameters once: clients mostly send the same ones again and again."""
    message = types_pb2.SamplingParams.FromString(encoded)
    default = SamplingParams()
    params = SamplingParams(
        max_tokens=message.max_tokens if message.HasField("max_tokens") else default.max_tokens,
        temperature=message.temperature if message.HasField("temperature") else default.temperature,
        top_p=message.top_p if message.HasField("top_p") else default.top_p,
        top_k=message.top_k if message.HasField("top_k") else None,
        min_p=message.min_p if message.HasField("min_p") else default.min_p,
        seed=message.seed if message.HasField("seed") else None,
        stop=tuple(message.stop),
        stop_token_ids=tuple(message.stop_token_ids),
        ignore_eos=message.ignore_eos,
        logprobs=message.logprobs,
    )
    _check_sampling(params)
    _check_stops(params, vocab_size)
    return params


def _check_sampling(params: SamplingParams) -> None:
    """Comparisons with NaN are false, so NaN is refused like any other value out of range."""
    _require(params.max_tokens >= 1, "max_tokens", params.max_tokens, "at least 1")
    _require(
        0 <= params.temperature <= MAX_TEMPERATURE,
        "temperature",
        params.temperature,
        f"from 0 (greedy) to {MAX_TEMPERATURE:g}",
    )
    _require(0 < params.top_p <= 1, "top_p", params.top_p, "above 0 and at most 1")
    _require(params.top_k is None or params.top_k >= 1, "top_k", params.top_k, "at least 1")
    _require(0 <= params.min_p <= 1, "min_p", params.min_p, "from 0 to 1")


def _check_stops(params: SamplingParams, vocab_size: int) -> None:
    stops, ids = params.stop, params.stop_token_ids
    _require(len(stops) <= MAX_STOPS, "stop", f"{len(stops)} texts", f"at most {MAX_STOPS}")
    _require(all(stops), "stop", "an empty text", "texts of at least one character")
    _require(
        len(ids) <= MAX_STOP_TOKEN_IDS,
        "stop_token_ids",
        f"{len(ids)} ids",
        f"at most {MAX_STOP_TOKEN_IDS}",
    )
    largest = max(ids, default=0)
    _require(largest < vocab_size, "stop_token_ids", largest, f"below {vocab_size}")


def _require(is_valid: bool, field: str, value: object, allowed: str) -> None:
    if not is_valid:
        raise InvalidRequestError(
            f"sampling_params.{field} is {value}; it must be {allowed}",
            field=f"sampling_params.{field}",
        )
