"""`baton up`: the whole mesh on this machine until Ctrl-C."""

import asyncio
import sys
import time
from pathlib import Path
from typing import Annotated, Protocol

import typer
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from baton.cli.common import ConfigOption, reporting, run_until_signal
from baton.compute import ComputeOptions, Device, Dtype, TokenBudget
from baton.local.child import log_tail
from baton.local.member import Member, MemberState, StackEvent
from baton.local.plan import StackOptions
from baton.local.stack import Stack
from baton.ports import GATEWAY_PORT, ROUTER_PORT

_BAR_CELLS = 40
_LOG_WORDS = 4
_SAID_CHARACTERS = 48


def up(
    config: ConfigOption = None,
    prefill: Annotated[
        int | None, typer.Option("--prefill", min=0, help="Prefill workers.")
    ] = None,
    decode: Annotated[int | None, typer.Option("--decode", min=0, help="Decode workers.")] = None,
    router_port: Annotated[
        int, typer.Option("--router-port", min=0, max=65535, help="0 is any free port.")
    ] = ROUTER_PORT,
    gateway_port: Annotated[
        int, typer.Option("--gateway-port", min=0, max=65535, help="HTTP; 0 is any free port.")
    ] = GATEWAY_PORT,
    keys: Annotated[
        Path | None,
        typer.Option("--keys", metavar="FILE", help="Key file of `baton key` for the gateway."),
    ] = None,
    metrics: Annotated[
        bool, typer.Option("--metrics", help="Offer every service's metrics to Prometheus.")
    ] = False,
    device: Device = "auto",
    dtype: Dtype = "auto",
    token_budget: TokenBudget = None,
    autoscale: Annotated[
        bool, typer.Option("--autoscale", help="Size both pools by demand (autoscale.*).")
    ] = False,
    no_ui: Annotated[
        bool, typer.Option("--no-ui", help="Plain lines instead of a live table.")
    ] = False,
) -> None:
    """Start Redis, admission, router, workers and gateway here; Ctrl-C stops them in order.

    Workers that are not given are autoscale.*.min_replicas of the configuration. Redis is started
    too unless mesh.redis_url or REDIS_URL names one. Logs go to .baton/run/<time>/.
    """
    options = StackOptions(
        config_path=config,
        prefill=prefill,
        decode=decode,
        router_port=router_port,
        compute=ComputeOptions(device, dtype, token_budget),
        gateway_port=gateway_port,
        keys_path=keys,
        has_metrics=metrics,
        autoscale=() if autoscale else None,
    )
    with reporting():
        run_until_signal(_up(options, is_live=not no_ui and sys.stdout.isatty()))
    typer.echo("stopped; nothing is left running")


async def _up(options: StackOptions, is_live: bool) -> None:
    board = Board(Console(), is_live)
    stack = Stack(options, board.observe)
    board.begin(stack)
    try:
        async with stack:
            board.end()
            _invite(stack)
            await asyncio.Event().wait()
    finally:
        board.end()


def _invite(stack: Stack) -> None:
    router = stack.router_address
    typer.echo(f"router {router} is ready; logs are in {stack.run_dir}")
    typer.echo(f"console  http://{stack.gateway_address}/console/")
    typer.echo(f"OpenAI   http://{stack.gateway_address}/v1")
    typer.echo(f'  baton generate "The with statement" --router {router}')
    typer.echo(f'  baton generate --chat "What does open do?" --router {router}')
    typer.echo(f"  baton status --router {router}")
    if stack.options.autoscale is not None:
        found = f"  REDIS_URL={stack.redis_url} baton autoscale"
        typer.echo(found)
        typer.echo(f"{found} --advise --control {stack.control_address}")
    if stack.options.has_metrics:
        keeping = "--enable-feature=exemplar-storage"
        typer.echo(f"  prometheus {keeping} --config.file={stack.prometheus_config}")
    typer.echo("Ctrl-C stops everything.")


class Board:
    """Shows the members' states: a live table while the stack starts, lines after that."""

    def __init__(self, console: Console, is_live: bool) -> None:
        self._stack: Stack | None = None
        self._began_s = time.monotonic()
        # Asks for its picture at once.
        self._live = Live(console=console, get_renderable=self._picture) if is_live else None

    def begin(self, stack: Stack) -> None:
        """Starts the table, where there is one."""
        self._stack = stack
        if self._live is not None:
            self._live.start()

    def end(self) -> None:
        """Leaves the table as it is; from here on changes are lines."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def observe(self, event: StackEvent) -> None:
        """Takes a change of a member's state."""
        if self._live is not None:
            self._live.refresh()
        else:
            typer.echo(event_line(event, self._stack))

    def _picture(self) -> RenderableType:
        if self._stack is None:
            return ""
        seconds = time.monotonic() - self._began_s
        return Group(readiness(self._stack, seconds), member_table(self._stack))


def readiness(stack: Stack, seconds: float) -> Table:
    """Returns how much of the stack is ready, as a bar with a number and the time."""
    ready = sum(member.is_ready for member in stack.members)
    line = Table.grid(padding=(0, 2))
    bar = ProgressBar(total=max(1, len(stack.members)), completed=ready, width=_BAR_CELLS)
    line.add_row(bar, f"{ready} of {len(stack.members)} ready, {seconds:.0f} s")
    return line


def member_table(stack: Stack) -> Table:
    """Returns one row per member."""
    table = Table(box=None, pad_edge=False)
    for heading in ("service", "pid", "address", "state"):
        table.add_column(heading, no_wrap=True)
    for member in stack.members:
        table.add_row(
            member.name, str(member.pid or "-"), member.address or "-", doing(member, stack)
        )
    return table


class HasLogs(Protocol):
    """Keeps a log for each member."""

    def log(self, name: str) -> Path:
        """Returns the log file of a member."""
        ...


def doing(member: Member, stack: HasLogs) -> str:
    """Returns a member's state; of one that starts also what it said last."""
    state: str = member.state.value
    if member.state is not MemberState.STARTING:
        return state
    lines = log_tail(stack.log(member.name), 1)
    words = lines[0].split(" ", _LOG_WORDS) if lines else []
    # Date, time, level and logger come first; what is not the log's own line is not shown.
    is_ours = len(words) > _LOG_WORDS and words[2] == "INFO"
    return f"{state}: {words[-1][:_SAID_CHARACTERS]}" if is_ours else state


def event_line(event: StackEvent, stack: Stack | None) -> str:
    """Returns a change as one line with the time of day."""
    line = f"{time.strftime('%H:%M:%S')} {event.name} {event.state.value}"
    if stack is not None and event.state in (MemberState.STARTING, MemberState.READY):
        member = stack.member(event.name)
        line += f" pid {member.pid}" + (f" at {member.address}" if member.address else "")
    return f"{line}: {event.detail}" if event.detail else line
