"""A gateway that listens in this process, in front of a control plane."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import uvicorn

from baton.api_keys import ApiKeys
from baton.client import RouterClient
from baton.telemetry.providers import Telemetry, start_telemetry
from services.gateway.access import Access
from services.gateway.app import make_app
from services.gateway.console import Console


@asynccontextmanager
async def running_gateway(
    router_address: str, keys: ApiKeys | None = None, telemetry: Telemetry | None = None
) -> AsyncIterator[str]:
    """Yields the gateway's URL."""
    telemetry = telemetry or start_telemetry("test", "test", "")
    access = Access(keys)
    async with RouterClient(router_address) as router:
        console = Console(router, access)
        app = make_app(router, access, telemetry, console)
        server = uvicorn.Server(
            uvicorn.Config(app, lifespan="off", log_config=None, timeout_graceful_shutdown=1)
        )
        with socket.create_server(("127.0.0.1", 0)) as listening:
            port = listening.getsockname()[1]
            task = asyncio.create_task(server._serve([listening]))
            yield f"http://127.0.0.1:{port}"
            console.is_closing = True
            server.should_exit = True
            await task
