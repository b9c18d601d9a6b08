"""The key file: hashes only, and errors that name the entry."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from baton.api_keys import add_key, load_keys
from baton.cli.main import app
from baton.errors import ConfigError


def test_a_made_key_stands_for_its_tenant_and_is_not_in_the_file(tmp_path: Path) -> None:
    file = tmp_path / "keys.yaml"
    first, second = add_key(file, "acme"), add_key(file, "zoo")
    keys = load_keys(file)
    assert (keys.tenant_of(first), keys.tenant_of(second)) == ("acme", "zoo")
    assert keys.tenant_of("baton-guess") is None
    assert first not in file.read_text()
    assert file.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    "text", ["{", "a: b", "- tenant: a b\n  sha256: x", "- tenant: a\n  sha256: 12", "- 1"]
)
def test_a_wrong_file_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "keys.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError):
        load_keys(file)


def test_the_command_prints_the_key(tmp_path: Path) -> None:
    file = tmp_path / "keys.yaml"
    result = CliRunner().invoke(app, ["key", "acme", "--file", str(file)])
    assert load_keys(file).tenant_of(result.stdout.strip()) == "acme"
    assert CliRunner().invoke(app, ["key", "no good", "--file", str(file)]).exit_code == 1
