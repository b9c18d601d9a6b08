"""`python -m tests.fuzz TARGET --seconds N`: the coverage-guided fuzzer on one reader.

It needs the extra `fuzz`. A finding is written beside the corpus and its path printed.
"""

import sys
from pathlib import Path
from typing import Annotated

import typer

_CORPUS = Path(".baton") / "fuzz"


def main(
    target: Annotated[str, typer.Argument(help="A name in tests/fuzz/targets.py.")],
    seconds: Annotated[int, typer.Option(min=1, help="How long to try.")] = 60,
) -> None:
    """Feed one reader with whatever reaches new lines of it."""
    import atheris  # an extra of its own; it sees only what is imported after it, seeds included

    with atheris.instrument_imports(include=["baton", "services", "sim", "tests.fuzz.targets"]):
        from tests.fuzz.seeds import seeds
        from tests.fuzz.targets import TARGETS
    if target not in TARGETS:
        raise typer.BadParameter(f"unknown target {target}; use one of {', '.join(TARGETS)}")
    corpus = _CORPUS / target
    corpus.mkdir(parents=True, exist_ok=True)
    for number, data in enumerate(seeds()[target]):
        (corpus / f"seed-{number}").write_bytes(data)
    arguments = [f"-max_total_time={seconds}", "-timeout=60", f"-artifact_prefix={corpus}-finding-"]
    atheris.Setup([sys.argv[0], *arguments, str(corpus)], TARGETS[target])
    atheris.Fuzz()


if __name__ == "__main__":
    typer.run(main)
