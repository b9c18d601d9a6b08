"""Workers as sglang-router expects them, that answer at a given pace and compute nothing.

They speak just enough HTTP/1.1 on asyncio's own protocols to be cheap: the answers to its
discovery, and POST /generate as JSON or as server-sent events in chunked encoding, one event per
token. `python -m bench.http_worker --port 31001 --port 31002 --step-ms 1`.
"""

import asyncio
import json
from typing import Annotated, Any, cast

import typer
import uvloop

from baton.collector import quieten_collector
from baton.rpc.server import stop_signal

_HEAD_END = b"\r\n\r\n"
_INFO = {
    "model_path": "fake",
    "served_model_name": "fake",
    "tokenizer_path": "fake",
    "is_generation": True,
    "version": "0.5.0",
    "disaggregation_mode": "null",
    "dp_size": 1,
    "max_total_num_tokens": 1 << 20,
}
_STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
)
_LAST_CHUNK = b"0\r\n\r\n"
_DEFAULT_TOKENS = 16


class FakeWorker(asyncio.Protocol):
    """One connection to a fake worker. `step_s` is the time of a token; 0 writes all at once."""

    def __init__(self, step_s: float) -> None:
        self._step_s = step_s
        self._transport: asyncio.Transport | None = None
        self._received = bytearray()
        self._is_answering = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keeps the connection."""
        # uvloop's transports have the interface without the base class.
        self._transport = cast("asyncio.Transport", transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forgets the connection; a stream under way ends."""
        self._transport = None

    def data_received(self, data: bytes) -> None:
        """Answers each request once it is whole."""
        self._received += data
        self._take_requests()

    def _take_requests(self) -> None:
        while not self._is_answering:
            head_end = self._received.find(_HEAD_END)
            if head_end < 0:
                return
            head = bytes(self._received[:head_end])
            body_start = head_end + len(_HEAD_END)
            body_end = body_start + _content_length(head)
            if len(self._received) < body_end:
                return
            body = bytes(self._received[body_start:body_end])
            del self._received[:body_end]
            self._answer(head, body)

    def _answer(self, head: bytes, body: bytes) -> None:
        method, path, *_ = head.split(b" ", 2)
        if method == b"PRI":
            self._close()  # a probe for HTTP/2
        elif method == b"POST" and path.startswith(b"/generate"):
            self._generate(json.loads(body))
        else:
            self._write(_json_response(_INFO))

    def _generate(self, request: dict[str, Any]) -> None:
        sampling = request.get("sampling_params") or {}
        tokens = int(sampling.get("max_new_tokens", _DEFAULT_TOKENS))
        if not request.get("stream"):
            self._write(_json_response(_part(tokens, tokens)))
            return
        self._is_answering = True
        self._write(_STREAM_HEAD)
        if self._step_s > 0:
            self._step(1, tokens)
            return
        events = b"".join(_event(_part(at, tokens)) for at in range(1, tokens + 1))
        self._end(events)

    def _step(self, at: int, tokens: int) -> None:
        if self._transport is None:
            return
        event = _event(_part(at, tokens))
        if at == tokens:
            self._end(event)
            return
        self._write(event)
        asyncio.get_running_loop().call_later(self._step_s, self._step, at + 1, tokens)

    def _end(self, events: bytes) -> None:
        self._write(events + _chunked(b"data: [DONE]\n\n") + _LAST_CHUNK)
        self._is_answering = False
        self._take_requests()

    def _write(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)

    def _close(self) -> None:
        if self._transport is not None:
            self._transport.close()


def _content_length(head: bytes) -> int:
    for line in head.split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        if name.strip().lower() == b"content-length":
            return int(value)
    return 0


def _part(at: int, tokens: int) -> dict[str, Any]:
    reason = {"type": "length", "length": tokens} if at == tokens else None
    meta = {
        "id": "fake",
        "finish_reason": reason,
        "prompt_tokens": 64,
        "completion_tokens": at,
        "cached_tokens": 0,
    }
    return {"text": " word", "output_ids": [at], "meta_info": meta}


def _event(part: dict[str, Any]) -> bytes:
    return _chunked(b"data: " + json.dumps(part).encode() + b"\n\n")


def _chunked(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def _json_response(value: dict[str, Any]) -> bytes:
    body = json.dumps(value).encode()
    head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
    return head % len(body) + body


def main() -> None:
    """Runs the command line."""
    typer.run(_command)


def _command(
    port: Annotated[list[int], typer.Option(help="Port of one worker; may be repeated.")],
    step_ms: Annotated[float, typer.Option(help="Time of a token. Milliseconds.")] = 0.0,
) -> None:
    """Run fake HTTP workers until told to stop."""
    quieten_collector()
    uvloop.run(_serve(port, step_ms / 1e3))


async def _serve(ports: list[int], step_s: float) -> None:
    stop, loop = stop_signal(), asyncio.get_running_loop()
    for port in ports:
        await loop.create_server(lambda: FakeWorker(step_s), "127.0.0.1", port)
    print("ready", flush=True)
    await stop.wait()


if __name__ == "__main__":
    main()
