"""What is installed is pinned and hashed, and the offline scan finds what it should."""

import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tools.supply.vulnerabilities import Finding, locked_versions, scan

LOCK, CONSTRAINTS = Path("requirements.lock"), Path("constraints.txt")
BY_MACHINE = {"torch", "baton"}
"""Not in the lock: see tools/supply/lock.sh."""


def wanted() -> set[str]:
    """Names of the packages that `pip install .[dev]` asks for, extras followed."""
    project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    open_extras, seen, names = ["dev"], set(), {*project["dependencies"]}
    while open_extras:
        extra = open_extras.pop()
        seen.add(extra)
        for text in extras[extra]:
            names.add(text)
            requirement = Requirement(text)
            if requirement.name == "baton":
                open_extras += requirement.extras - seen
    return {canonicalize_name(Requirement(text).name) for text in names}


def test_the_lock_holds_what_is_asked_for_at_the_pinned_versions() -> None:
    locked, pinned = dict(locked_versions(LOCK)), dict(locked_versions(CONSTRAINTS))
    assert wanted() - BY_MACHINE <= set(locked), "run `make lock`"
    assert {name: pinned[name] for name in pinned.keys() & locked} == {
        name: locked[name] for name in pinned.keys() & locked
    }, "run `make lock`"


def test_every_package_of_the_lock_has_hashes() -> None:
    blocks = LOCK.read_text().replace("\\\n", "").splitlines()
    assert all("--hash=sha256:" in block for block in blocks)


def advisory(folder: Path, **more: object) -> None:
    (folder / "vulns" / "some-package").mkdir(parents=True)
    affected = {
        "package": {"name": "Some_Package", "ecosystem": "PyPI"},
        "ranges": [
            {
                "type": "ECOSYSTEM",
                "events": [{"introduced": "0"}, {"fixed": "1.2"}, {"introduced": "2.0"},
                           {"last_affected": "2.1"}],
            }
        ],
        "versions": ["1.5.post1"],
    }  # fmt: skip
    text = yaml.safe_dump({"id": "PYSEC-1", "affected": [affected], **more})
    (folder / "vulns" / "some-package" / "PYSEC-1.yaml").write_text(text)


@pytest.mark.parametrize("lock", sorted(Path("requirements").glob("*.lock")), ids=str)
def test_an_image_holds_nothing_but_what_is_locked_for_all(lock: Path) -> None:
    whole = LOCK.read_text()
    hashes = {line.strip(" \\") for line in lock.read_text().splitlines() if "--hash" in line}
    assert hashes
    assert all(line in whole for line in hashes), "run `make lock`"


@pytest.mark.parametrize(
    ("version", "is_found"),
    [("0.1", True), ("1.2", False), ("1.5.post1", True), ("1.10", False), ("2.0", True),
     ("2.1", True), ("2.1.1", False)],
)  # fmt: skip
def test_a_version_in_a_range_or_list_is_found(
    tmp_path: Path, version: str, is_found: bool
) -> None:
    advisory(tmp_path)
    expected = [Finding("some-package", version, "PYSEC-1", "1.2")] if is_found else []
    assert list(scan(tmp_path, "some-package", version)) == expected


def test_withdrawn_advisories_and_other_packages_do_not_count(tmp_path: Path) -> None:
    advisory(tmp_path, withdrawn="2024-01-01T00:00:00Z")
    assert not list(scan(tmp_path, "some-package", "0.1"))
    assert not list(scan(tmp_path, "another", "0.1"))
