"""Asks a server for its health: `python -m baton.rpc.probe HOST:PORT [SERVICE]`.

Without SERVICE it asks whether the process is alive, with one (baton.v1.RouterService) whether that
service takes work. Exits with 0 when the answer is SERVING, else prints why and exits with 1. Made
for container health checks: synchronous, and it imports little but grpc.
"""

import argparse
import sys

import grpc
from grpc_health.v1 import health_pb2

from baton.errors import StartupError
from baton.rpc.identity import TARGET_NAME, Identity

TIMEOUT_S = 3.0
"""How long connecting and answering may take together."""

_SERVING = health_pb2.HealthCheckResponse.SERVING


def check(address: str, service: str = "", timeout_s: float = TIMEOUT_S) -> str:
    """Returns "" when `service` at host:port is serving, else why it is not."""
    request = health_pb2.HealthCheckRequest(service=service)
    try:
        opened = _channel(address)
    except StartupError as error:
        return str(error)
    with opened as channel:
        ask = channel.unary_unary(
            "/grpc.health.v1.Health/Check",
            request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
            response_deserializer=health_pb2.HealthCheckResponse.FromString,
        )
        try:
            response = ask(request, timeout=timeout_s)
        except grpc.RpcError as error:
            return f"{error.code().name}: {error.details()}"
    if response.status == _SERVING:
        return ""
    return health_pb2.HealthCheckResponse.ServingStatus.Name(response.status)


def _channel(address: str) -> grpc.Channel:
    identity = Identity.of()
    if identity is None:
        return grpc.insecure_channel(address)
    return grpc.secure_channel(address, identity.channel_credentials(), options=[TARGET_NAME])


def main(arguments: list[str] | None = None) -> int:
    """Runs the probe; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m baton.rpc.probe", description="gRPC health.")
    parser.add_argument("address", metavar="HOST:PORT")
    parser.add_argument("service", nargs="?", default="", help="full name; default: the process")
    given = parser.parse_args(arguments)
    problem = check(given.address, given.service)
    if problem:
        sys.stderr.write(f"{given.address} {given.service or '(process)'}: {problem}\n")
    return 1 if problem else 0


if __name__ == "__main__":
    sys.exit(main())
