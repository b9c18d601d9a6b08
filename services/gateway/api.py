"""The OpenAI-compatible endpoints."""

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from baton.client import Chunk, Completion, Prompt, RequestOptions, RouterClient
from baton.errors import BatonError, CancelledByPeerError, InvalidRequestError, UnknownModelError
from baton.rpc.channels import MAX_MESSAGE_BYTES
from baton.v1 import router_pb2
from services.gateway.access import Access
from services.gateway.answers import Shape, server_timing
from services.gateway.failures import body_of, failure
from services.gateway.requests import chat_prompt, options_of, text_prompt
from services.gateway.schema import Common, parse_chat, parse_text
from services.gateway.tracing import current_traceparent

REQUEST_ID = "x-request-id"
DONE = "data: [DONE]\n\n"
TIMEOUT_S = 600.0
TOO_LARGE = "REQUEST_TOO_LARGE"
BODY_TIMEOUT_S = 30.0

_DISCARDED_SHARE = 4
"""Of too large a body this much is read, since many clients see a refusal only once all is sent."""


@dataclass(frozen=True, slots=True)
class Ask:
    """A checked request on its way to the router."""

    prompt: Prompt
    options: RequestOptions
    shape: Shape
    prompt_field: str
    is_streaming: bool
    wants_usage: bool


class OpenAiApi:
    """Answers by one router."""

    def __init__(self, router: RouterClient, access: Access) -> None:
        self._router = router
        self._access = access

    async def chat(self, request: Request) -> Response:
        """POST /v1/chat/completions."""
        return await self._answer(request, is_chat=True)

    async def text(self, request: Request) -> Response:
        """POST /v1/completions."""
        return await self._answer(request, is_chat=False)

    async def models(self, request: Request) -> Response:
        """GET /v1/models."""
        self._access.tenant(request)
        try:
            models = await self._router.models()
        except BatonError as error:
            return failure(error, "")
        return JSONResponse({"object": "list", "data": [_model(model) for model in models]})

    async def model(self, request: Request) -> Response:
        """GET /v1/models/{name}."""
        self._access.tenant(request)
        wished = request.path_params["name"]
        try:
            for model in await self._router.models():
                if model.name == wished:
                    return JSONResponse(_model(model))
            raise UnknownModelError(f"model {wished!r} is not served here", field="model")
        except BatonError as error:
            return failure(error, "")

    async def _answer(self, request: Request, *, is_chat: bool) -> Response:
        tenant = self._access.tenant(request)
        prompt_field = "messages" if is_chat else "prompt"
        request_id = request.headers.get(REQUEST_ID) or _new_id(is_chat)
        headers = {REQUEST_ID: request_id} if request_id.isascii() else {}
        try:
            ask = _ask(await read_json(request), request_id, tenant, is_chat=is_chat)
            if ask.is_streaming:
                return await self._stream(ask, headers)
            return await self._whole(ask, request, headers)
        except BatonError as error:
            return failure(error, prompt_field, headers)

    async def _whole(self, ask: Ask, request: Request, headers: dict[str, str]) -> Response:
        text, done = await _unless_gone(request, self._collect(ask))
        headers |= {"server-timing": server_timing(done.timing)}
        return JSONResponse(ask.shape.whole(text, done), headers=headers)

    async def _collect(self, ask: Ask) -> tuple[str, Completion]:
        pieces: list[str] = []
        done: Completion | None = None
        async for part in self._router.generate(ask.prompt, ask.options):
            if isinstance(part, Chunk):
                pieces.append(part.text)
            else:
                done = part
        assert done is not None
        return "".join(pieces), done

    async def _stream(self, ask: Ask, headers: dict[str, str]) -> Response:
        parts = self._router.generate(ask.prompt, ask.options)
        # What fails before the first token is a status of its own, not an event in a stream.
        first = await anext(parts)
        headers |= {"cache-control": "no-cache", "x-accel-buffering": "no"}
        events = _events(ask, first, parts)
        return StreamingResponse(events, media_type="text/event-stream", headers=headers)


async def _read(request: Request) -> bytes:
    body = bytearray()
    size = 0
    async for piece in request.stream():
        size += len(piece)
        if size <= MAX_MESSAGE_BYTES:
            body += piece
        elif size > _DISCARDED_SHARE * MAX_MESSAGE_BYTES:
            break
    if size > MAX_MESSAGE_BYTES:
        raise InvalidRequestError(
            f"the body is larger than {MAX_MESSAGE_BYTES} bytes", reason=TOO_LARGE
        )
    return bytes(body)


async def read_json(request: Request) -> dict[str, Any]:
    """Returns the body as an object.

    Raises InvalidRequestError when it is none, too large or too slow to come.
    """
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            body = await _read(request)
    except TimeoutError:
        raise InvalidRequestError(
            f"the body did not arrive in {BODY_TIMEOUT_S:g} s", reason="REQUEST_TIMEOUT"
        ) from None
    try:
        value = json.loads(body)
    except (ValueError, RecursionError) as error:  # the latter for arrays within arrays within ...
        raise InvalidRequestError(f"the body is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise InvalidRequestError("the body is not a JSON object")
    return value


def _ask(body: dict[str, Any], request_id: str, tenant: str, *, is_chat: bool) -> Ask:
    parsed: Common
    if is_chat:
        parsed = chat = parse_chat(body)
        prompt = chat_prompt(chat)
    else:
        parsed = text = parse_text(body)
        prompt = text_prompt(text)
    return Ask(
        prompt=prompt,
        options=options_of(parsed, request_id, tenant, current_traceparent(), TIMEOUT_S),
        shape=Shape(request_id, parsed.model, int(time.time()), is_chat),
        prompt_field="messages" if is_chat else "prompt",
        is_streaming=bool(parsed.stream),
        wants_usage=parsed.wants_usage,
    )


async def _events(
    ask: Ask, first: Chunk | Completion, rest: AsyncIterator[Chunk | Completion]
) -> AsyncIterator[str]:
    """Yields the stream's events; leaving it early ends the request."""
    async with aclosing(rest):  # type: ignore[type-var]  # it is a generator
        opening = ask.shape.opening()
        if opening is not None:
            yield event(opening)
        try:
            for text in _texts(ask, first):
                yield text
            async for part in rest:
                for text in _texts(ask, part):
                    yield text
        except BatonError as error:
            yield event(body_of(error, ask.prompt_field))
            return
        yield DONE


def _texts(ask: Ask, part: Chunk | Completion) -> list[str]:
    if isinstance(part, Chunk):
        return [event(ask.shape.piece(part.text))] if part.text else []
    texts = [event(ask.shape.closing(part))]
    if ask.wants_usage:
        texts.append(event(ask.shape.accounting(part)))
    return texts


def event(value: dict[str, Any]) -> str:
    """Returns one server-sent event."""
    return f"data: {json.dumps(value, ensure_ascii=False, separators=(',', ':'))}\n\n"


async def _unless_gone(request: Request, work: Any) -> Any:
    """Returns what `work` returns; cancels it when the client leaves."""
    task = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait({task, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise CancelledByPeerError("the client left")
        return task.result()
    finally:
        for each in (task, leaving):
            each.cancel()
        await asyncio.gather(task, leaving, return_exceptions=True)


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        continue


def _model(model: router_pb2.Model) -> dict[str, Any]:
    return {
        "id": model.name,
        "object": "model",
        "created": 0,
        "owned_by": "baton",
        "context_length": model.context_length,
    }


def _new_id(is_chat: bool) -> str:
    return f"{'chatcmpl' if is_chat else 'cmpl'}-{secrets.token_hex(12)}"
