"""The gateway put together: routes, errors, health."""

from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Mount, Route

from baton.client import RouterClient
from baton.errors import BatonError
from baton.telemetry.providers import Telemetry
from services.gateway.access import Access
from services.gateway.api import OpenAiApi
from services.gateway.console import Console, Page
from services.gateway.failures import DeniedError, denial, failure, refusal
from services.gateway.tracing import Tracing


def make_app(
    router: RouterClient, access: Access, telemetry: Telemetry, console: Console
) -> Starlette:
    """Returns the application; it closes nothing that it was given."""
    api = OpenAiApi(router, access)

    async def ready(request: Request) -> Response:
        try:
            models = await router.models()
        except BatonError as error:
            return failure(error, "")
        is_ready = bool(models)
        return JSONResponse({"ready": is_ready}, 200 if is_ready else 503)

    routes = [
        Route("/v1/chat/completions", api.chat, methods=["POST"]),
        Route("/v1/completions", api.text, methods=["POST"]),
        Route("/v1/models", api.models, methods=["GET"]),
        Route("/v1/models/{name:path}", api.model, methods=["GET"]),
        Route("/livez", _alive, methods=["GET"]),
        Route("/readyz", ready, methods=["GET"]),
        Route("/console/api/snapshot", console.snapshot, methods=["GET"]),
        Route("/console/api/live", console.live, methods=["GET"]),
        Route("/console/api/explain/{request_id:path}", console.explain, methods=["GET"]),
        Mount("/console", Page()),
        Route("/", _home, methods=["GET"]),
    ]
    handlers: dict[Any, Any] = {DeniedError: _denied, HTTPException: _http_error}
    middleware = [Middleware(Tracing, telemetry=telemetry)]
    return Starlette(routes=routes, exception_handlers=handlers, middleware=middleware)


async def _alive(request: Request) -> Response:
    return JSONResponse({"alive": True})


async def _home(request: Request) -> Response:
    return RedirectResponse("/console/")


async def _denied(request: Request, error: DeniedError) -> Response:
    return denial(error)


async def _http_error(request: Request, error: HTTPException) -> Response:
    return refusal(
        f"{request.method} {request.url.path}: {error.detail}", error.status_code, "http"
    )
