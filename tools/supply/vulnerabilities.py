"""Looks up every locked package in a copy of PyPI's advisory database, without a network.

    git clone https://github.com/pypa/advisory-database
    python tools/supply/vulnerabilities.py advisory-database

Advisories are in the OSV schema (https://ossf.github.io/osv-schema/), one file each.
"""

import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

LOCKS = (Path("requirements.lock"), Path("constraints.txt"))


@dataclass(frozen=True, slots=True)
class Finding:
    """A locked version that an advisory names."""

    package: str
    version: str
    advisory: str
    fixed_in: str


def main(
    database: Annotated[Path, typer.Argument(exists=True, file_okay=False)],
    lock: Annotated[list[Path] | None, typer.Option(help="Files to read.")] = None,
) -> None:
    """Print what is vulnerable; the exit status is 1 when anything is."""
    locked = dict(pair for path in lock or LOCKS for pair in locked_versions(path))
    findings = [
        it for name, version in sorted(locked.items()) for it in scan(database, name, version)
    ]
    for it in findings:
        typer.echo(
            f"{it.package} {it.version}: {it.advisory}, fixed in {it.fixed_in or 'no release'}"
        )
    typer.echo(
        f"{len(locked)} packages, {len(findings)} findings, advisories as of {_age(database)}"
    )
    raise typer.Exit(1 if findings else 0)


def locked_versions(path: Path) -> Iterator[tuple[str, str]]:
    """Yields name and version of each pinned package."""
    for line in path.read_text().splitlines():
        text = line.removesuffix("\\").strip()
        if text and not text.startswith(("--", "#")):
            requirement = Requirement(text)
            (pin,) = requirement.specifier
            yield canonicalize_name(requirement.name), pin.version


def scan(database: Path, name: str, version: str) -> Iterator[Finding]:
    """Yields what the database says about one version."""
    for path in sorted((database / "vulns" / name).glob("*.yaml")):
        advisory = yaml.safe_load(path.read_text())
        for affected in advisory.get("affected", ()):
            is_same = canonicalize_name(affected["package"]["name"]) == name
            if is_same and "withdrawn" not in advisory and is_affected(affected, version):
                yield Finding(name, version, advisory["id"], ", ".join(_fixes(affected)))


def is_affected(affected: dict[str, Any], version: str) -> bool:
    """Tells whether the version is listed or lies in a range, as OSV's evaluation defines it."""
    if version in affected.get("versions", ()):
        return True
    return any(_is_within(events, Version(version)) for events in _ranges(affected))


def _is_within(events: list[dict[str, str]], version: Version) -> bool:
    is_inside = False
    for event in events:
        (kind, text), *_ = event.items()
        bound = Version("0") if text == "0" else Version(text)
        if kind == "introduced" and version >= bound:
            is_inside = True
        elif (kind == "fixed" and version >= bound) or (
            kind == "last_affected" and version > bound
        ):
            is_inside = False
    return is_inside


def _ranges(affected: dict[str, Any]) -> Iterator[list[dict[str, str]]]:
    for one in affected.get("ranges", ()):
        if one["type"] == "ECOSYSTEM":
            try:
                yield sorted(one["events"], key=lambda event: Version(next(iter(event.values()))))
            except InvalidVersion:
                continue  # such an advisory lists its versions one by one as well


def _fixes(affected: dict[str, Any]) -> Iterator[str]:
    for events in _ranges(affected):
        yield from (event["fixed"] for event in events if "fixed" in event)


def _age(database: Path) -> str:
    command = ("git", "-C", str(database), "log", "-1", "--format=%cs")
    result = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    return result.stdout.strip() or "an unknown day"


if __name__ == "__main__":
    typer.run(main)
