"""Channel and server options, and the tracing-free way to reach a peer."""

import os
from collections.abc import Sequence

import grpc

from baton.api_keys import ENV_API_KEY
from baton.rpc.identity import TARGET_NAME, Identity

os.environ.setdefault("GRPC_EXPERIMENTS", "-event_engine_client,-event_engine_listener")
"""The thread that waits for gRPC's events in Python also waits for the sockets, as it did up to
gRPC 1.76. With gRPC's own threads for that each message takes two more steps between threads: 0.45
instead of 0.29 ms there and back. Read at the first channel or server of the process."""

MAX_MESSAGE_BYTES = 8 * 1024 * 1024
"""Largest message either way; a prompt of two million token ids still fits."""

MAX_METADATA_BYTES = 16 * 1024
MAX_STREAMS = 4096
"""Calls at once on one connection; the client library holds further ones back."""

_KEEPALIVE_MS = 2_000

_COMMON: Sequence[tuple[str, int]] = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    # A peer that vanished without closing is noticed within two keepalives.
    ("grpc.keepalive_time_ms", _KEEPALIVE_MS),
    ("grpc.keepalive_timeout_ms", _KEEPALIVE_MS),
    ("grpc.http2.max_pings_without_data", 0),
)

SERVER_OPTIONS: Sequence[tuple[str, int]] = (
    *_COMMON,
    ("grpc.http2.min_ping_interval_without_data_ms", _KEEPALIVE_MS // 2),
    ("grpc.http2.max_ping_strikes", 0),
    # What strangers may hold: names and values of one call, calls of one connection, and a
    # connection that never says what it wants.
    ("grpc.max_metadata_size", MAX_METADATA_BYTES),
    ("grpc.absolute_max_metadata_size", MAX_METADATA_BYTES),
    ("grpc.max_concurrent_streams", MAX_STREAMS),
    ("grpc.server_handshake_timeout_ms", 10_000),
)

CHANNEL_OPTIONS: Sequence[tuple[str, int]] = (
    *_COMMON,
    ("grpc.keepalive_permit_without_calls", 0),
    # A restarted peer on the same port is reached again soon.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.use_local_subchannel_pool", 1),
)


def open_channel(address: str) -> grpc.aio.Channel:
    """Returns a channel to host:port inside the mesh; connects on first use.

    It is TLS where this process has an identity, and then carries its API key, if it has one, with
    every call: never in clear text. Raises StartupError when the identity is incomplete.
    """
    identity = Identity.of()
    if identity is None:
        return grpc.aio.insecure_channel(address, options=list(CHANNEL_OPTIONS))
    options = [*CHANNEL_OPTIONS, TARGET_NAME]
    credentials = identity.channel_credentials()
    if key := os.environ.get(ENV_API_KEY):
        bearer = grpc.access_token_call_credentials(key)
        credentials = grpc.composite_channel_credentials(credentials, bearer)
    return grpc.aio.secure_channel(address, credentials, options=options)
