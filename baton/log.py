"""Logging of a service process: one line per event on stderr, in few writes.

A router writes a line per request. Looking up the caller, the thread and the process for each,
formatting the same second again and a write of its own cost as much as placing the request did.
"""

import logging
import sys
import threading
import time
from contextlib import suppress

FLUSH_EVERY_S = 0.2
_BUFFERED_CHARACTERS = 1 << 16


def start_logging() -> None:
    """Logs to stderr from here on. Lines below WARNING may come FLUSH_EVERY_S late."""
    logging.logThreads = False
    logging.logProcesses = False
    logging.logMultiprocessing = False
    logging._srcfile = None  # how the library says to skip the caller
    handler = BatchingHandler()
    handler.setFormatter(LineFormatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
    handler.start()
    logging.basicConfig(level=logging.INFO, handlers=[handler])


class LineFormatter(logging.Formatter):
    """Formats the second of a line's time only once, and a plain line without a template."""

    _second = -1
    _text = ""

    def format(self, record: logging.LogRecord) -> str:
        """Returns the record's line; a traceback's lines follow it."""
        if record.exc_info or record.exc_text or record.stack_info:
            return super().format(record)
        time_text = self.formatTime(record)
        return f"{time_text} {record.levelname} {record.name} {record.getMessage()}"

    def formatTime(  # noqa: N802 - the library's name
        self, record: logging.LogRecord, datefmt: str | None = None
    ) -> str:
        """Returns the time to the millisecond."""
        second = int(record.created)
        if second != self._second:
            self._text = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(second))
            self._second = second
        return f"{self._text},{int(record.msecs):03d}"


class BatchingHandler(logging.Handler):
    """Writes lines together, at once from WARNING on.

    The one thread that does so starts before there is anything to log: starting a thread waits for
    ever when its first steps find no memory, and it is an event loop that would wait.
    """

    def __init__(self) -> None:
        super().__init__()
        self._lines: list[str] = []
        self._size = 0

    def start(self) -> None:
        """Begins to write lines every FLUSH_EVERY_S, until the process ends."""
        threading.Thread(target=self._flush_for_ever, name="baton-log", daemon=True).start()

    def emit(self, record: logging.LogRecord) -> None:
        """Takes one line."""
        line = self.format(record) + "\n"
        self._lines.append(line)
        self._size += len(line)
        if record.levelno >= logging.WARNING or self._size > _BUFFERED_CHARACTERS:
            self.flush()

    def flush(self) -> None:
        """Writes what is there; the library calls it at exit too."""
        with self.lock or threading.RLock():
            lines, self._lines, self._size = self._lines, [], 0
        if lines:
            with suppress(OSError):  # a full disk costs lines, not what the process was doing
                sys.stderr.write("".join(lines))
                sys.stderr.flush()

    def _flush_for_ever(self) -> None:
        while True:
            time.sleep(FLUSH_EVERY_S)
            if self._lines:
                with suppress(MemoryError):
                    self.flush()
