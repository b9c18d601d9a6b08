"""Lines of the log."""

import logging
import sys

from baton.log import LineFormatter

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
