"""`baton certs`: certificates for a fleet that speaks TLS."""

from pathlib import Path
from typing import Annotated

import typer

from baton.cli.common import reporting
from baton.rpc.identity import ENV_TLS_DIR


def certs(
    directory: Annotated[Path, typer.Argument(help="Folder to write to; made when missing.")],
    host: Annotated[
        list[str] | None,
        typer.Option("--host", help="Name or address of the router for clients; may be repeated."),
    ] = None,
    days: Annotated[int, typer.Option(min=1, help="How long the certificate is valid.")] = 90,
) -> None:
    """Make certificates for the fleet, or renew them with the authority that is there."""
    # Here, since only the extra `local` brings the library that it needs.
    from baton.local.certs import CA_KEY_FILE, write_certificates

    with reporting():
        is_new = write_certificates(directory, tuple(host or ()), days)
    typer.echo(f"{'made' if is_new else 'renewed'} certificates in {directory}")
    typer.echo(f"  services and clients: export {ENV_TLS_DIR}={directory}")
    typer.echo(f"  keep {CA_KEY_FILE} away from the machines that serve")
