"""The built-in console: a page that shows the mesh live, fed by the router's own answers."""

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.staticfiles import StaticFiles

from baton.client import RouterClient
from baton.errors import BatonError
from baton.picture import explain_values, fleet_values, requests_values
from services.gateway.access import Access
from services.gateway.api import event
from services.gateway.failures import failure

PAGE_DIR = Path(__file__).parent / "console"
INTERVAL_S = 1.0
SHOWN_REQUESTS = 200


class Console:
    """Answers the page's questions. However many watch, the router is asked once a second."""

    def __init__(self, router: RouterClient, access: Access) -> None:
        self._router = router
        self._access = access
        self._lock = asyncio.Lock()
        self._taken_s = 0.0
        self._last: dict[str, Any] = {}
        self.is_closing = False

    async def snapshot(self, request: Request) -> Response:
        """GET /console/api/snapshot: the mesh now."""
        self._access.check_operator(request)
        return JSONResponse(await self._snapshot(), headers={"cache-control": "no-store"})

    async def live(self, request: Request) -> Response:
        """GET /console/api/live: the mesh now and every second, as server-sent events."""
        self._access.check_operator(request)
        headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
        return StreamingResponse(self._events(), media_type="text/event-stream", headers=headers)

    async def explain(self, request: Request) -> Response:
        """GET /console/api/explain/{request_id}: why a request went where it went."""
        self._access.check_operator(request)
        try:
            explained = await self._router.explain(request.path_params["request_id"])
        except BatonError as error:
            return failure(error, "")
        return JSONResponse(explain_values(explained), headers={"cache-control": "no-store"})

    async def _events(self) -> AsyncIterator[str]:
        while not self.is_closing:
            yield event(await self._snapshot())
            await asyncio.sleep(INTERVAL_S)

    async def _snapshot(self) -> dict[str, Any]:
        async with self._lock:
            if time.monotonic() - self._taken_s >= INTERVAL_S / 2:
                self._last = await self._ask()
                self._taken_s = time.monotonic()
        return self._last

    async def _ask(self) -> dict[str, Any]:
        values: dict[str, Any] = {"router": self._router.address, "now_s": time.time()}
        try:
            fleet, listed = await asyncio.gather(
                self._router.fleet(), self._router.requests(SHOWN_REQUESTS)
            )
        except BatonError as error:
            return values | {"error": {"reason": error.reason, "message": error.message}}
        return values | {"fleet": fleet_values(fleet), **requests_values(listed)}


class Page(StaticFiles):
    """The page's files; browsers ask each time whether they changed."""

    def __init__(self) -> None:
        super().__init__(directory=PAGE_DIR, html=True)

    def file_response(self, *arguments: Any, **named: Any) -> Response:
        """Returns a file that may be shown but runs nothing from elsewhere."""
        response = super().file_response(*arguments, **named)
        response.headers["cache-control"] = "no-cache"
        response.headers["content-security-policy"] = (
            "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
            "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        )
        response.headers["x-content-type-options"] = "nosniff"
        return response
