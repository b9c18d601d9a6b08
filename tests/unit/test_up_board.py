"""What `baton up` shows while the mesh starts."""

from io import StringIO
from pathlib import Path

from rich.console import Console

from baton.cli.up import Board, doing
from baton.local.member import Member, MemberState
from baton.local.plan import StackOptions
from baton.local.roles import Role
from baton.local.stack import Stack


class Logs:
    """Where a stack keeps its logs."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def log(self, name: str) -> Path:
        return self._folder / f"{name}.log"


def test_a_starting_member_shows_what_it_is_at(tmp_path: Path) -> None:
    member = Member("decode-0", Role.DECODE, state=MemberState.STARTING)
    logs = Logs(tmp_path)
    assert doing(member, logs) == "starting"

    line = "2026-11-24 10:24:23,400 INFO baton.engine.torch.assembly loading weights model=tiny\n"
    logs.log("decode-0").write_text(line)
    assert doing(member, logs) == "starting: loading weights model=tiny"

    logs.log("decode-0").write_text(line + "[Gloo] Rank 0 is connected to 0 peer ranks\n")
    assert doing(member, logs) == "starting"

    member.state = MemberState.READY
    assert doing(member, logs) == "ready"


def test_the_live_table_begins_before_anything_started() -> None:
    written = StringIO()
    board = Board(Console(file=written, force_terminal=True), is_live=True)
    board.begin(Stack(StackOptions()))
    board.end()
    assert "0 of 0 ready" in written.getvalue()
