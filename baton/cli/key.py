"""`baton key`: a new API key for a tenant."""

from pathlib import Path
from typing import Annotated

import typer

from baton.api_keys import add_key
from baton.cli.common import reporting


def key(
    tenant: Annotated[str, typer.Argument(help="Who it is for; `operator` opens the console.")],
    file: Annotated[Path, typer.Option("--file", help="Key file that the gateway reads.")],
) -> None:
    """Make an API key, print it once and keep its hash in the file."""
    with reporting():
        typer.echo(add_key(file, tenant))
