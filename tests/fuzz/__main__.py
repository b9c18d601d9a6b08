"""`python -m tests.fuzz TARGET --seconds N`: the coverage-guided fuzzer on one reader.

It needs the extra `fuzz`. Inputs that reach something new are kept and are
where the next run begins; a finding is written beside them and its path printed.
"""

import sys
from pathlib import Path
from typing import Annotated

import typer

_CORPUS = Path(".baton") / "fuzz"
_INPUT_LIMIT_S = 300
"""By the clock: a fuzzer that gets little of a busy machine takes long for anything."""


def main(
    target: Annotated[str, typer.Argument(help="A name in tests/fuzz/targets.py.")],
    seconds: Annotated[int, typer.Option(min=1, help="How long to try.")] = 60,
    corpus: Annotated[Path, typer.Option(help="Where inputs are kept between runs.")] = _CORPUS,
) -> None:
    """Feed one reader with whatever reaches new lines of it."""
    import atheris  # an extra of its own; it sees only what is imported after it, seeds included

    with atheris.instrument_imports(include=["baton", "services", "sim", "tests.fuzz.targets"]):
        from tests.fuzz.seeds import seeds
        from tests.fuzz.targets import TARGETS
    if target not in TARGETS:
        raise typer.BadParameter(f"unknown target {target}; use one of {', '.join(TARGETS)}")
    inputs = corpus / target
    inputs.mkdir(parents=True, exist_ok=True)
    for number, data in enumerate(seeds()[target]):
        (inputs / f"seed-{number}").write_bytes(data)
    limits = (f"-max_total_time={seconds}", f"-timeout={_INPUT_LIMIT_S}", "-print_final_stats=1")
    arguments = (*limits, f"-artifact_prefix={inputs}-finding-", str(inputs))
    atheris.Setup([sys.argv[0], *arguments], TARGETS[target])
    atheris.Fuzz()


if __name__ == "__main__":
    typer.run(main)
