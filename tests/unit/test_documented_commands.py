"""What the documentation tells people to type exists: targets, commands and their options."""

import re
import shlex
from collections.abc import Iterator

import pytest
from typer.testing import CliRunner

from baton.cli.main import app
from tests.support.documented import PAGES, ROOT, commands

TARGETS = set(re.findall(r"^([a-z][a-z0-9-]*):", (ROOT / "Makefile").read_text(), re.M))
TEXTS = [page.read_text(encoding="utf-8") for page in PAGES]


def baton_commands() -> Iterator[list[str]]:
    for page in PAGES:
        for command in commands(page):
            if command.startswith("baton "):
                words = shlex.split(command.partition(" < ")[0])[1:]
                yield words


def test_pages_have_commands() -> None:
    assert len(list(baton_commands())) > 15


@pytest.mark.parametrize("words", list(baton_commands()), ids=" ".join)
def test_every_baton_command_and_option_exists(words: list[str]) -> None:
    at = 2 if words[0] == "config" else 1
    shown = CliRunner().invoke(app, [*words[:at], "--help"], env={"COLUMNS": "200"})
    assert shown.exit_code == 0, shown.output
    for option in (word.partition("=")[0] for word in words[at:] if word.startswith("--")):
        assert option in shown.output


def test_every_make_target_exists() -> None:
    named = {name for text in TEXTS for name in re.findall(r"[`$] ?make ([a-z][a-z0-9-]*)", text)}
    assert named
    assert named <= TARGETS
