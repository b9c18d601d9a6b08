"""What a worker and its engine process say to each other over one socket.

Each message is a length and a msgpack map; `kind` tells the type. The two processes are one
program in one environment, so there are no versions here.
"""

import asyncio
import struct
from typing import Any

import msgspec

_LENGTH = struct.Struct("<I")


class Launch(msgspec.Struct, frozen=True):
    """What the worker tells its engine process on the command line."""

    arguments: dict[str, Any]
    events_endpoint: str = ""
    replay_endpoint: str = ""


class Generate(msgspec.Struct, frozen=True, tag="generate", tag_field="kind"):
    """Runs one request. `arguments` are keyword arguments of the engine's `async_generate`."""

    number: int
    arguments: dict[str, Any]


class Abort(msgspec.Struct, frozen=True, tag="abort", tag_field="kind"):
    """Stops a request; its last frame still comes."""

    number: int


class Ready(msgspec.Struct, frozen=True, tag="ready", tag_field="kind"):
    """The engine is loaded. `kv_tokens` is the size of its KV pool."""

    kv_tokens: int
    kv_dtype: str
    context_length: int
    device: str
    bootstrap_port: int


class Refused(msgspec.Struct, frozen=True, tag="refused", tag_field="kind"):
    """The engine could not be made; it ends after this."""

    message: str


class Output(msgspec.Struct, frozen=True, tag="output", tag_field="kind"):
    """New tokens of a request. The last one has `finish`, and `meta` with its times."""

    number: int
    token_ids: list[int]
    logprobs: list[float] = []
    finish: dict[str, Any] | None = None
    meta: dict[str, Any] = {}


class Failed(msgspec.Struct, frozen=True, tag="failed", tag_field="kind"):
    """A request ended with an exception inside the engine's front."""

    number: int
    message: str
    is_invalid: bool


class Load(msgspec.Struct, frozen=True, tag="load", tag_field="kind"):
    """The scheduler's figures, as SGLang names them."""

    snapshot: dict[str, Any]


class CacheEvents(msgspec.Struct, frozen=True, tag="events", tag_field="kind"):
    """Changes of the prefix cache, as SGLang publishes them. With `is_gap` some were lost."""

    events: list[Any]
    is_gap: bool = False


Command = Generate | Abort
Report = Ready | Refused | Output | Failed | Load | CacheEvents

_commands = msgspec.msgpack.Decoder(Command)
_reports = msgspec.msgpack.Decoder(Report)
_encoder = msgspec.msgpack.Encoder()


def write(writer: asyncio.StreamWriter, message: Command | Report) -> None:
    """Sends a message; does not wait for the other side."""
    body = _encoder.encode(message)
    writer.write(_LENGTH.pack(len(body)) + body)


async def read_command(reader: asyncio.StreamReader) -> Command | None:
    """Returns the next command, or None when the worker is gone."""
    body = await _read(reader)
    return None if body is None else _commands.decode(body)


async def read_report(reader: asyncio.StreamReader) -> Report | None:
    """Returns the next report, or None when the engine process is gone."""
    body = await _read(reader)
    return None if body is None else _reports.decode(body)


async def _read(reader: asyncio.StreamReader) -> bytes | None:
    try:
        (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
        return await reader.readexactly(length)
    except (asyncio.IncompleteReadError, ConnectionError):
        return None
