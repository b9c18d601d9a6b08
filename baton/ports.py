"""Where a mesh on one machine listens: unless its flags say otherwise, and where nobody says."""

import errno
import secrets
import socket

ROUTER_PORT = 7411
"""gRPC of the router."""

GATEWAY_PORT = 7480
"""HTTP of the gateway: the OpenAI-compatible API and the console."""

LISTENING_PORTS = range(20_000, 30_000)
"""Systems give none of these to connections: one that is free stays so until who it is for, or its
next life, listens there."""


def free_port(host: str) -> int:
    """Returns a port of `host` that nobody listens on at the moment; an empty host is all.

    Raises OSError when `host` is none of this machine's.
    """
    while True:
        port = secrets.choice(LISTENING_PORTS)
        with socket.socket() as probe:
            try:
                probe.bind((host, port))
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
                continue
            return port
