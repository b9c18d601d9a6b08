"""OpenAI requests as what the router is asked."""

from typing import Any

from baton.client import Prompt, RequestOptions, Turn
from baton.errors import InvalidRequestError
from baton.requests import Priority, SamplingParams
from services.gateway.schema import ChatRequest, Common, TextRequest

_PRIORITIES = {"low": Priority.LOW, "normal": Priority.NORMAL, "high": Priority.HIGH}
_TIERS = {"flex": Priority.LOW, "priority": Priority.HIGH}


def chat_prompt(request: ChatRequest) -> Prompt:
    """Returns the conversation; a developer's message is a system message."""
    return Prompt(
        turns=tuple(
            Turn("system" if message.role == "developer" else message.role, message.text)
            for message in request.messages
        )
    )


def text_prompt(request: TextRequest) -> Prompt:
    """Returns the one prompt. Raises InvalidRequestError for several."""
    prompt: Any = request.prompt
    if isinstance(prompt, list) and prompt and isinstance(prompt[0], str | list):
        if len(prompt) > 1:
            raise InvalidRequestError(
                f"{len(prompt)} prompts in one request are not supported; send one", field="prompt"
            )
        prompt = prompt[0]
    if isinstance(prompt, str):
        return Prompt(text=prompt)
    if not prompt or any(not 0 <= token < 2**32 for token in prompt):
        raise InvalidRequestError(
            "the token ids are not in range, or none is given", field="prompt"
        )
    return Prompt(input_ids=tuple(prompt))


def options_of(
    request: Common, request_id: str, tenant: str, traceparent: str, timeout_s: float
) -> RequestOptions:
    """Returns how to answer; `model` "" of the router is its own one."""
    return RequestOptions(
        sampling=_sampling(request),
        priority=_priority(request),
        request_id=request_id,
        model=request.model,
        tenant=tenant,
        session_id=request.session_id or request.prompt_cache_key or "",
        cache_salt=request.cache_salt or "",
        ttft_slo_s=_seconds(request.ttft_slo_ms),
        tpot_slo_s=_seconds(request.tpot_slo_ms),
        traceparent=traceparent,
        timeout_s=timeout_s,
    )


def _sampling(request: Common) -> SamplingParams:
    default = SamplingParams()
    stop = (request.stop,) if isinstance(request.stop, str) else tuple(request.stop or ())
    limit = default.max_tokens if request.limit is None else request.limit
    _check_size("max_tokens", limit)
    _check_size("top_k", request.top_k or 0)
    for token in request.stop_token_ids or ():
        _check_size("stop_token_ids", token)
    return SamplingParams(
        max_tokens=limit,
        temperature=default.temperature if request.temperature is None else request.temperature,
        top_p=default.top_p if request.top_p is None else request.top_p,
        top_k=request.top_k,
        min_p=default.min_p if request.min_p is None else request.min_p,
        seed=request.seed,
        stop=stop,
        stop_token_ids=tuple(request.stop_token_ids or ()),
        ignore_eos=request.ignore_eos,
    )


def _check_size(field: str, value: int) -> None:
    # What does not fit the wire; the router checks the rest.
    if not 0 <= value < 2**32:
        raise InvalidRequestError(f"{field} is {value}; it is out of range", field=field)


def _priority(request: Common) -> Priority:
    if request.priority is not None:
        return _PRIORITIES[request.priority]
    return _TIERS.get(request.service_tier or "", Priority.NORMAL)


def _seconds(milliseconds: float | None) -> float | None:
    return None if milliseconds is None else milliseconds / 1000
