"""The examples run alone, in seconds, and say something."""

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
SCRIPTS = {
    "dynamic_routing": "of the 1021 long prompts went remote",
    "early_rejection": "let in: low",
    "latency_aware_routing": "round_robin",
    "kv_cache_transfer": "refused: ",
    "nixl_transfer": "right",
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_script_runs_alone_and_shows_something(name: str, tmp_path: Path) -> None:
    script = EXAMPLES / f"{name}.py"
    assert len(script.read_text().splitlines()) < 100
    result = subprocess.run(
        [sys.executable, str(script)], cwd=tmp_path, capture_output=True, text=True, timeout=100
    )
    assert result.returncode == 0, result.stderr
    assert SCRIPTS[name] in result.stdout
    assert "WRONG" not in result.stdout


def test_profilers_may_import_them_and_call_main(tmp_path: Path) -> None:
    code = "import dynamic_routing; dynamic_routing.main()"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=EXAMPLES, capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 0, result.stderr
