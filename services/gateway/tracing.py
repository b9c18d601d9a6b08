"""One span and one measurement per HTTP request; trace context comes in and goes out."""

import time
from contextvars import ContextVar

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from baton.telemetry import names
from baton.telemetry.providers import Telemetry, traceparent_of

_CURRENT: ContextVar[str] = ContextVar("traceparent", default="")
_TRACED = "/v1/"
TRACE_RESPONSE = "traceresponse"
"""Header of W3C Trace Context Level 2: which trace answered."""


def current_traceparent() -> str:
    """Returns the span of the HTTP request that is answered now; empty when it is not traced."""
    return _CURRENT.get()


class Tracing:
    """ASGI middleware around the API; the console's own requests are not traced."""

    def __init__(self, app: ASGIApp, telemetry: Telemetry) -> None:
        self._app = app
        self._telemetry = telemetry
        self._duration = telemetry.histogram(names.HTTP_DURATION)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request."""
        if scope["type"] != "http" or not scope["path"].startswith(_TRACED):
            await self._app(scope, receive, send)
            return
        began_s = time.monotonic()
        status = 499  # what stays when the client leaves before an answer
        traceparent = Headers(scope=scope).get("traceparent", "")
        route = _route(scope["path"])
        method = scope["method"] if scope["method"] in ("GET", "POST") else "_OTHER"
        attributes = {names.ATTR_HTTP_METHOD: method, names.ATTR_HTTP_ROUTE: route}
        with self._telemetry.span(names.SPAN_GATEWAY, traceparent, attributes) as span:
            own = traceparent_of(span)

            async def sending(message: Message) -> None:
                nonlocal status
                if message["type"] == "http.response.start":
                    status = message["status"]
                    span.set_attribute(names.ATTR_HTTP_STATUS, status)
                    if own:
                        MutableHeaders(scope=message)[TRACE_RESPONSE] = own
                await send(message)

            token = _CURRENT.set(own or traceparent)
            try:
                await self._app(scope, receive, sending)
            finally:
                _CURRENT.reset(token)
                seconds = time.monotonic() - began_s
                self._duration.record(seconds, {**attributes, names.ATTR_HTTP_STATUS: status})


def _route(path: str) -> str:
    """Returns the path without what clients choose, so that there are few."""
    for known in ("/v1/chat/completions", "/v1/completions", "/v1/models"):
        if path == known:
            return known
    return "/v1/models/{name}" if path.startswith("/v1/models/") else "_OTHER"
