"""Notices through a pipe: whole, in order, waking the reader, and failing when it is dead.

One pipe per reader, which any process of the host opens by the reader's descriptor. A frame is no
longer than PIPE_BUF, so frames of several writers never mix.
"""

import fcntl
import logging
import os
import select
import struct
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress

from baton.errors import PreconditionError, TransferError
from baton.kv.segment import Place, here, is_pipe, open_place
from baton.kv.wire import ReceivedNotice

logger = logging.getLogger(__name__)

PIPE_BYTES = 1 << 20
"""Room for some thousands of notices; the kernel may grant less."""
FULL_PIPE_TIMEOUT_S = 1.0
"""A reader that lets its pipe stay full for this long is taken for lost."""

_FRAME = struct.Struct("<HH")
_LONGEST_FRAME = select.PIPE_BUF
_READ_BYTES = 64 << 10


class NoticePipe:
    """The reader's end, with the thread that empties it. `wake` is called on that thread."""

    def __init__(self, name: str, wake: Callable[[], None]) -> None:
        self._wake = wake
        self._read_end, self._write_end = os.pipe2(os.O_CLOEXEC)
        with suppress(OSError):  # above what an unprivileged user may have
            fcntl.fcntl(self._write_end, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        self._lock = threading.Lock()
        self._received: list[ReceivedNotice] = []
        self._thread = threading.Thread(target=self._run, name=f"kv-in-{name}", daemon=True)
        self._thread.start()

    @property
    def place(self) -> Place:
        """Where writers find the pipe."""
        return here(self._write_end)

    def take(self) -> Sequence[ReceivedNotice]:
        """Returns what arrived since the last call."""
        if not self._received:
            return ()
        with self._lock:
            received, self._received = self._received, []
        return received

    def close(self) -> None:
        """Ends the thread and the pipe; writers find it gone."""
        os.write(self._write_end, _FRAME.pack(0, 0))
        self._thread.join()
        os.close(self._read_end)
        os.close(self._write_end)

    def _run(self) -> None:
        rest = b""
        while True:
            rest += os.read(self._read_end, _READ_BYTES)
            frames, rest, is_over = _split(rest)
            if frames:
                with self._lock:
                    self._received += frames
                self._wake()
            if is_over:
                return


class PipeWriter:
    """A writer's end of a peer's pipe."""

    def __init__(self, place: Place, agent: str) -> None:
        """Opens it. Raises PreconditionError (OTHER_HOST)."""
        self._agent = agent
        self._descriptor = open_place(place, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        if not is_pipe(self._descriptor):
            self.close()
            raise PreconditionError(f"{agent} announced no pipe", reason="MALFORMED_METADATA")

    def put(self, writer: str, notice: bytes) -> None:
        """Sends one notice. Raises TransferError (PEER_LOST) when nobody reads."""
        name = writer.encode()
        frame = _FRAME.pack(len(name), len(notice)) + name + notice
        assert len(frame) <= _LONGEST_FRAME
        try:
            self._write(frame)
        except BrokenPipeError as error:
            raise TransferError(f"{self._agent} is gone", reason="PEER_LOST") from error

    def close(self) -> None:
        """Closes this end."""
        os.close(self._descriptor)

    def _write(self, frame: bytes) -> None:
        try:
            os.write(self._descriptor, frame)
        except BlockingIOError:
            waiting = select.poll()
            waiting.register(self._descriptor, select.POLLOUT)
            waiting.poll(1e3 * FULL_PIPE_TIMEOUT_S)
            try:
                os.write(self._descriptor, frame)
            except BlockingIOError as error:
                raise TransferError(
                    f"{self._agent} does not read its notices", reason="PEER_LOST"
                ) from error


def _split(data: bytes) -> tuple[list[ReceivedNotice], bytes, bool]:
    """Returns the whole frames at the start, what is left, and whether the end was among them."""
    frames: list[ReceivedNotice] = []
    start = 0
    while len(data) - start >= _FRAME.size:
        name_bytes, notice_bytes = _FRAME.unpack_from(data, start)
        if not name_bytes:
            return frames, b"", True
        body = start + _FRAME.size
        end = body + name_bytes + notice_bytes
        if end > len(data):
            break
        name = data[body : body + name_bytes].decode(errors="replace")
        frames.append(ReceivedNotice(name, data[body + name_bytes : end]))
        start = end
    return frames, data[start:], False
