"""The documentation builds without a warning, and no link in it leads nowhere."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_site_builds_and_every_link_leads_somewhere() -> None:
    result = subprocess.run(
        [sys.executable, "tools/docs_site.py"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "every link checked" in result.stdout


@pytest.mark.parametrize("tool", ["telemetry_doc", "monitoring", "tuning_doc"])
def test_generated_pages_are_what_the_code_says(tool: str) -> None:
    command = [sys.executable, f"tools/{tool}.py", "--check"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
