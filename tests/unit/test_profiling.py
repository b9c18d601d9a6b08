"""The chapter's profilers on its scripts: torch's here, NVIDIA's say so where they are absent."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
UNDER_TORCH = """
from torch.profiler import profile, ProfilerActivity

with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as prof:
    import {name}
    {name}.main()

print(prof.key_averages().table(sort_by="cpu_time_total", row_limit=5))
"""


def run(command: list[str], cwd: Path, path: str = "") -> subprocess.CompletedProcess[str]:
    environ = {**os.environ, "OMP_NUM_THREADS": "1", **({"PATH": path} if path else {})}
    return subprocess.run(
        command, cwd=cwd, env=environ, capture_output=True, text=True, timeout=100
    )


@pytest.mark.parametrize(("name", "said"), [("dynamic_routing", "on average")])
def test_the_torch_profiler_runs_around_a_script(name: str, said: str) -> None:
    result = run([sys.executable, "-c", UNDER_TORCH.format(name=name)], EXAMPLES)
    assert result.returncode == 0, result.stderr
    assert said in result.stdout


def test_profile_torch_tells_where_a_scripts_time_went() -> None:
    result = run([sys.executable, "-m", "bench.profile", "examples/kv_cache_transfer.py"], ROOT)
    assert result.returncode == 0, result.stderr
    for expected in ("refused: ", "Python functions by their own time", "torch operators"):
        assert expected in result.stdout


@pytest.mark.parametrize("tool", ["nsys", "ncu"])
def test_an_absent_profiler_is_named_with_what_to_do(tool: str, tmp_path: Path) -> None:
    for needed in ("bash", "dirname"):
        (tmp_path / needed).symlink_to(f"/usr/bin/{needed}")
    result = run(["bash", "tools/profile_nvidia.sh", tool, "true"], ROOT, str(tmp_path))
    assert result.returncode == 1
    assert f"{tool} is not on PATH, so nothing was profiled" in result.stderr
    assert "make profile-torch" in result.stderr
