"""Lines of the log."""

import logging
import sys
import threading
from contextlib import suppress

import pytest

from baton.log import BatchingHandler, LineFormatter
from tests.support.waiting import eventually

FORMAT = "%(asctime)s %(levelname)s %(name)s %(message)s"


def record(**more: object) -> logging.LogRecord:
    made = logging.LogRecord("baton.x", logging.INFO, "x.py", 1, "got %d of %s", (3, "y"), None)
    made.__dict__.update(more)
    return made


def test_plain_line_reads_as_the_librarys_own_formatter_writes_it() -> None:
    assert LineFormatter(FORMAT).format(record()).endswith(" INFO baton.x got 3 of y")
    made = record()
    assert LineFormatter(FORMAT).format(made) == logging.Formatter(FORMAT).format(made)


def test_traceback_follows_its_line() -> None:
    try:
        int("no number")
    except ValueError:
        made = record(exc_info=sys.exc_info())
    text = LineFormatter(FORMAT).format(made)
    assert text.splitlines()[0].endswith(" INFO baton.x got 3 of y")
    assert text.splitlines()[-1].startswith("ValueError: invalid literal")


async def test_a_line_starts_no_thread_which_hangs_its_caller_when_memory_is_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    handler = BatchingHandler()
    handler.start()

    def no_memory(thread: threading.Thread) -> None:
        raise MemoryError

    monkeypatch.setattr(threading.Thread, "start", no_memory)
    handler.emit(record())
    written: list[str] = []

    def is_written() -> bool:
        written.append(capsys.readouterr().err)
        return "got 3 of y" in "".join(written)

    await eventually(is_written)


def test_a_full_disk_loses_lines_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    handler = BatchingHandler()
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stderr", full)
        handler.emit(record(levelno=logging.WARNING))
        monkeypatch.undo()
        with suppress(OSError):
            full.close()
