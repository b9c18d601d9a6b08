"""`baton demo`: starts a mesh, sends four requests, tells what happened to each, stops."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pydoc_data.topics import topics

import typer

from baton.cli.common import reporting, run_until_signal
from baton.cli.generate import show
from baton.cli.summary import summary
from baton.client import Chunk, Prompt, RequestOptions, RouterClient, Turn
from baton.errors import StartupError
from baton.local.member import MemberState, StackEvent
from baton.local.plan import StackOptions
from baton.local.stack import Stack
from baton.requests import SamplingParams

_LONG_PROMPT_CHARS = 6_000
_SHOWN_CHARS = 160
_OWN_REDIS = {"BATON_MESH__REDIS_URL": ""}


@dataclass(frozen=True, slots=True)
class Scene:
    """One request of the demo; `lesson` says what to look at."""

    title: str
    lesson: str
    prompt: Prompt
    max_tokens: int = 48


def demo() -> None:
    """Start one prefill and one decode worker, send four requests, show where the time went."""
    began_s = time.monotonic()
    with reporting():
        run_until_signal(_demo())
        import psutil  # of the `local` extra: images hold the command line without it

        left = psutil.Process().children(recursive=True)
        if left:
            raise StartupError(f"left running: {', '.join(str(child.pid) for child in left)}")
    typer.echo(f"stopped after {time.monotonic() - began_s:.0f} s; nothing is left running")


async def _demo() -> None:
    began_s = time.monotonic()

    def observe(event: StackEvent) -> None:
        if event.state in (MemberState.READY, MemberState.RESTARTING, MemberState.FAILED):
            detail = f": {event.detail}" if event.detail else ""
            line = (
                f"  {time.monotonic() - began_s:5.1f} s  {event.name} {event.state.value}{detail}"
            )
            typer.echo(line)

    typer.echo("Starting Redis, admission, router, one prefill and one decode worker")
    options = StackOptions(prefill=1, decode=1, router_port=0, environ=_OWN_REDIS)
    async with Stack(options, observe) as stack, RouterClient(stack.router_address) as client:
        for number, scene in enumerate(scenes(), 1):
            await _play(client, number, scene)


async def _play(client: RouterClient, number: int, scene: Scene) -> None:
    typer.echo(f"\n{number}. {scene.title}. {scene.lesson}")
    typer.echo(f"   > {_excerpt(scene.prompt)}")
    sampling = SamplingParams(max_tokens=scene.max_tokens, temperature=0.7, top_p=0.9, seed=1)
    async for part in client.generate(scene.prompt, RequestOptions(sampling=sampling)):
        if isinstance(part, Chunk):
            show(part.text)
        else:
            show("\n")
            for phrase in summary(part):
                typer.echo(f"   | {phrase}")


def scenes() -> Iterator[Scene]:
    """Yields the requests; the prompts are Python's own documentation."""
    yield Scene(
        "A short prompt",
        "Too short to be worth a transfer: the decode worker computes it itself.",
        Prompt(text="The with statement is used to"),
    )
    long_prompt = Prompt(text=long_text())
    yield Scene(
        "A long prompt",
        "The prefill worker computes it and pushes its KV to the decode worker.",
        long_prompt,
    )
    yield Scene(
        "The same long prompt again",
        "Its KV is still cached: almost nothing to compute.",
        long_prompt,
    )
    question = Turn("user", "What does the function open do?")
    yield Scene(
        "A chat",
        "The model's chat template makes the prompt.",
        Prompt(turns=(Turn("system", "You explain Python."), question)),
    )


def long_text() -> str:
    """Returns some pages of Python's documentation, the same on every machine of one Python."""
    pages = [topics[name] for name in sorted(topics) if len(topics[name]) > _LONG_PROMPT_CHARS]
    return pages[0][:_LONG_PROMPT_CHARS].rpartition(" ")[0]


def _excerpt(prompt: Prompt) -> str:
    text = prompt.text if prompt.text is not None else prompt.turns[-1].content
    line = " ".join(text.split())
    return (
        line if len(line) <= _SHOWN_CHARS else f"{line[:_SHOWN_CHARS]} ... ({len(text)} characters)"
    )
