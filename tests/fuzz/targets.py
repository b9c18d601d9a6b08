"""The readers under test: bytes in; anything but the promised errors is a finding."""

import asyncio
import functools
import struct
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from google.protobuf.message import DecodeError, Message

from baton.blocks import root_hash
from baton.config import load_config
from baton.engine.sglang.rehash import CacheMirror
from baton.engine.sglang.wire import read_batch, read_event
from baton.errors import BatonError, ConfigError, PreconditionError
from baton.kv.notices import decode_metadata, decode_notice, encode_metadata, encode_notice
from baton.models import DEFAULT_MODEL
from baton.state.kv_wire import decode_changes, encode_changes
from baton.state.records import decode_record, decode_report, encode_record, encode_report
from baton.v1 import decode_link_pb2, prefill_link_pb2, router_pb2
from baton.worker.messages import engine_request
from services.router.incoming import tokenize
from services.router.model import ServedModel, Turn, load_served_model
from services.router.validation import check_request, check_tokens
from sim.traces.azure import CsvTrace
from sim.traces.errors import TraceError
from sim.traces.mooncake import MooncakeTrace

M = TypeVar("M", bound=Message)
Target = Callable[[bytes], None]

_MAX_PROMPT_BYTES = 4096
_PAGE = 16


@functools.cache
def _model() -> ServedModel:
    return load_served_model(DEFAULT_MODEL)


def generate_request(data: bytes) -> None:
    """A client's request, through validation and the tokenizer."""
    message = _parsed(router_pb2.GenerateRequest(), data)
    if message is None:
        return
    model = _model()
    with suppress(BatonError):
        incoming = check_request(message, model)
        ids = asyncio.run(tokenize(incoming, model))
        check_tokens(incoming.prompt.field, ids, model.context_length, model.vocab_size)


def decode_start(data: bytes) -> None:
    """A router's frame to a decode worker."""
    message = _parsed(decode_link_pb2.DecodeServiceLinkRequest(), data)
    for command in message.commands if message is not None else ():
        with suppress(BatonError):
            engine_request(command.start)


def prefill_start(data: bytes) -> None:
    """A decode worker's frame to a prefill worker."""
    message = _parsed(prefill_link_pb2.PrefillServiceLinkRequest(), data)
    for command in message.commands if message is not None else ():
        with suppress(BatonError):
            engine_request(command.start)


def tokenizer(data: bytes) -> None:
    """Any text as a prompt and as a turn of a chat."""
    text = data[:_MAX_PROMPT_BYTES].decode("utf-8", "replace")
    model = _model()
    ids = asyncio.run(model.encode(text))
    assert all(0 <= token < model.vocab_size for token in ids)
    model.tokenizer.decode(ids)
    with suppress(BatonError):
        asyncio.run(model.encode_chat([Turn("user", text)]))


def configuration(data: bytes) -> None:
    """A configuration file, YAML or JSON."""
    for suffix in (".yaml", ".json"):
        with _file(data, suffix) as path, suppress(ConfigError):
            load_config(path, {})


def mooncake_trace(data: bytes) -> None:
    """A trace in Mooncake's schema."""
    with _file(data, ".jsonl") as path, suppress(TraceError):
        _drain(MooncakeTrace(path).requests(seed=1))


def csv_trace(data: bytes) -> None:
    """A trace as comma-separated values."""
    with _file(data, ".csv") as path, suppress(TraceError):
        _drain(CsvTrace(path).requests(seed=1))


def kv_changes(data: bytes) -> None:
    """A worker's cache changes; what can be read is written the same again."""
    try:
        changes = decode_changes(data)
    except (ValueError, struct.error):
        return
    assert encode_changes(changes) == data


def registration(data: bytes) -> None:
    """A worker's record and its figures in Redis; what can be read survives another trip."""
    with suppress(ValueError):
        record = decode_record(data)
        assert decode_record(encode_record(record)) == record
    with suppress(ValueError):
        report = decode_report(data)
        assert decode_report(encode_report(report)) == report


def sglang_events(data: bytes) -> None:
    """A batch of an SGLang engine's cache events, up to the blocks that the mesh knows."""
    mirror = CacheMirror(_PAGE, lambda salt: root_hash("model", salt))
    with suppress(ValueError):
        events = [read_event(raw) for raw in read_batch(data)]
        mirror.apply(event for event in events if event is not None)


def kv_notices(data: bytes) -> None:
    """A peer's announcement of blocks, and its pool as it introduces itself."""
    notice = decode_notice(data)
    assert notice is None or encode_notice(notice) == data
    with suppress(PreconditionError):
        assert encode_metadata(decode_metadata(data)) == data


def client_frame(data: bytes) -> None:
    """A client's frame on the link that carries many requests."""
    message = _parsed(router_pb2.RouterServiceLinkRequest(), data)
    for command in message.commands if message is not None else ():
        with suppress(BatonError):
            check_request(command.start, _model())


TARGETS: dict[str, Target] = {
    target.__name__: target
    for target in (
        generate_request,
        decode_start,
        prefill_start,
        tokenizer,
        configuration,
        mooncake_trace,
        csv_trace,
        kv_changes,
        registration,
        client_frame,
        kv_notices,
        sglang_events,
    )
}


def _parsed(message: M, data: bytes) -> M | None:
    try:
        message.ParseFromString(data)
    except DecodeError:
        return None
    return message


def _drain(requests: Iterator[object]) -> None:
    for _ in requests:
        pass


@contextmanager
def _file(data: bytes, suffix: str) -> Iterator[Path]:
    with tempfile.NamedTemporaryFile(suffix=suffix) as file:
        file.write(data)
        file.flush()
        yield Path(file.name)
