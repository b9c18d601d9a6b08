"""What the commands share: options, errors as one clear line, and running a coroutine."""

import asyncio
import signal
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from baton.config import load_config
from baton.errors import BatonError, ConfigError, StartupError
from baton.ports import ROUTER_PORT

ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE", help="YAML or JSON file; default $BATON_CONFIG."),
]
RouterOption = Annotated[
    str | None,
    typer.Option(
        "--router",
        metavar="HOST:PORT",
        help="The router to ask; default port 7411 on mesh.host.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


@contextmanager
def reporting() -> Iterator[None]:
    """Turns the errors that a command may meet into one clear message and exit code 1."""
    try:
        yield
    except BatonError as error:
        fail(explain(error), error)
    except (ConfigError, StartupError) as error:
        fail(str(error), error)


def fail(message: str, cause: Exception) -> None:
    """Prints an error and exits with 1."""
    typer.echo(f"error: {message}", err=True)
    raise typer.Exit(1) from cause


def explain(error: BatonError) -> str:
    """Returns an error in one line: message, reason, field and when to come back."""
    facts = [f"reason {error.reason}"]
    if error.field:
        facts.append(f"field {error.field}")
    if error.retry_after_s is not None:
        facts.append(f"try again in {error.retry_after_s:.1f} s")
    return f"{' '.join(error.message.split())} ({', '.join(facts)})"


def router_address(wished: str | None) -> str:
    """Returns the address given, or the configured one. Raises ConfigError."""
    if wished:
        return wished
    mesh = load_config().mesh
    host = "127.0.0.1" if mesh.host in ("0.0.0.0", "") else mesh.host  # noqa: S104 - compared only
    return f"{host}:{ROUTER_PORT}"


def run_until_signal(work: Coroutine[Any, Any, None]) -> None:
    """Runs `work`, which SIGINT and SIGTERM cancel.

    A second signal cancels its cleaning up too. Returns normally when it was cancelled so; raises
    what it raises.
    """
    asyncio.run(_until_signal(work))


async def _until_signal(work: Coroutine[Any, Any, None]) -> None:
    task = asyncio.create_task(work)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, task.cancel)
    await asyncio.wait([task])
    if not task.cancelled():
        task.result()
