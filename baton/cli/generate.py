"""`baton generate`: one prompt, its answer as it comes."""

import asyncio
import enum
import json
import sys
from dataclasses import replace
from typing import Annotated

import typer

from baton.cli.common import JsonOption, RouterOption, reporting, router_address
from baton.cli.summary import as_values, summary
from baton.client import Chunk, Prompt, RequestOptions, RouterClient, Turn
from baton.requests import Priority, SamplingParams


class PriorityName(enum.StrEnum):
    """How urgent the request is."""

    LOW = "low"
    NORMAL = "normal"
    HIGH = "high"


def generate(
    text: Annotated[str, typer.Argument(help="The prompt; - reads it from standard input.")],
    router: RouterOption = None,
    chat: Annotated[
        bool, typer.Option("--chat", help="Ask as a conversation, by the model's chat template.")
    ] = False,
    system: Annotated[
        str | None, typer.Option("--system", help="System message; implies --chat.")
    ] = None,
    priority: Annotated[
        PriorityName, typer.Option("--priority", help="How urgent it is.")
    ] = PriorityName.NORMAL,
    max_tokens: Annotated[
        int | None, typer.Option("--max-tokens", min=1, help="Most tokens to generate.")
    ] = None,
    temperature: Annotated[
        float | None, typer.Option("--temperature", help="0 is greedy; default 1.")
    ] = None,
    top_p: Annotated[
        float | None, typer.Option("--top-p", help="Keep the likeliest tokens up to this share.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option("--seed", min=0, help="Makes sampling repeatable.")
    ] = None,
    stop: Annotated[
        list[str] | None, typer.Option("--stop", help="Text that ends the answer; repeatable.")
    ] = None,
    as_json: JsonOption = False,
    timeout_s: Annotated[
        float, typer.Option("--timeout", min=0.001, help="Longest wait for the whole answer, s.")
    ] = 600.0,
) -> None:
    """Stream the answer to a prompt; a summary of where it ran and took goes to stderr."""
    given = {
        "max_tokens": max_tokens,
        "temperature": temperature,
        "top_p": top_p,
        "seed": seed,
        "stop": tuple(stop) if stop else None,
    }
    options = RequestOptions(
        sampling=_sampling({name: value for name, value in given.items() if value is not None}),
        priority=Priority[priority.name],
        timeout_s=timeout_s,
    )
    prompt = _prompt(sys.stdin.read() if text == "-" else text, chat, system)
    with reporting():
        asyncio.run(_generate(router_address(router), prompt, options, as_json))


def _sampling(given: dict[str, object]) -> SamplingParams | None:
    """Returns what was asked for; nothing asked for leaves it to the mesh."""
    return replace(SamplingParams(), **given) if given else None  # type: ignore[arg-type]


def _prompt(text: str, chat: bool, system: str | None) -> Prompt:
    if not chat and system is None:
        return Prompt(text=text)
    first = () if system is None else (Turn("system", system),)
    return Prompt(turns=(*first, Turn("user", text)))


async def _generate(address: str, prompt: Prompt, options: RequestOptions, as_json: bool) -> None:
    pieces: list[str] = []
    output_ids: list[int] = []
    async with RouterClient(address) as client:
        async for part in client.generate(prompt, options):
            if isinstance(part, Chunk):
                pieces.append(part.text)
                output_ids.extend(part.output_ids)
                if not as_json:
                    show(part.text)
            elif as_json:
                typer.echo(json.dumps(as_values("".join(pieces), output_ids, part)))
            else:
                show("\n")
                typer.echo("; ".join(summary(part)), err=True)


def show(text: str) -> None:
    """Writes text to standard output at once."""
    sys.stdout.write(text)
    sys.stdout.flush()
