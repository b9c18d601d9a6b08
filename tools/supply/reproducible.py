"""Builds an image twice from nothing and prints every path of its layers that differs.

    python tools/supply/reproducible.py admission router

Needs Docker with BuildKit. Ends with an error if the two builds of a service are not the same.
SOURCE_DATE_EPOCH forgives times of the build, which an export with `rewrite-timestamp` sets to it.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import IO

BUILDS = 2


@dataclass(frozen=True, slots=True)
class Entry:
    """What a layer says about one path."""

    kind: str
    mode: int
    owner: int
    group: int
    modified_s: float
    link: str
    content: str
    """SHA-256 of a file's bytes; empty for everything else."""


@dataclass(frozen=True, slots=True)
class Difference:
    """A path that two images do not agree on, and in what."""

    layer: int
    path: str
    what: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Image:
    """The layers of a saved image, each from path to entry, and the digests of their archives."""

    layers: tuple[Mapping[str, Entry], ...]
    digests: tuple[str, ...]


def read_layer(archive: tarfile.TarFile) -> dict[str, Entry]:
    """Returns what a layer holds."""
    found: dict[str, Entry] = {}
    for member in archive:
        content = archive.extractfile(member) if member.isreg() else None
        found[member.name] = Entry(
            kind=member.type.decode(),
            mode=member.mode,
            owner=member.uid,
            group=member.gid,
            modified_s=member.mtime,
            link=member.linkname,
            content=_sha256(content) if content else "",
        )
    return found


def read_image(saved: Path) -> Image:
    """Returns what `docker save` wrote."""
    layers, digests = [], []
    with tarfile.open(saved) as archive:
        names = json.load(_member(archive, "manifest.json"))[0]["Layers"]
        for name in names:
            digests.append(_sha256(_member(archive, name)))
            with tarfile.open(fileobj=_member(archive, name)) as layer:
                layers.append(read_layer(layer))
    return Image(tuple(layers), tuple(digests))


def compare(first: Image, second: Image, epoch_s: float = float("inf")) -> Iterator[Difference]:
    """Yields what differs between two images, layer by layer and path by path.

    Times later than `epoch_s` count as equal: BuildKit's `rewrite-timestamp` sets them to it.
    """
    if len(first.layers) != len(second.layers):
        yield Difference(0, "", ("layers",))
    for number, (one, other) in enumerate(zip(first.layers, second.layers, strict=False)):
        for path in sorted(one.keys() | other.keys()):
            if what := _differing(one.get(path), other.get(path), epoch_s):
                yield Difference(number, path, what)


def _differing(one: Entry | None, other: Entry | None, epoch_s: float) -> tuple[str, ...]:
    if one is None or other is None:
        return ("presence",)
    one, other = (
        replace(entry, modified_s=min(entry.modified_s, epoch_s)) for entry in (one, other)
    )
    names = (field.name for field in fields(Entry))
    return tuple(name for name in names if getattr(one, name) != getattr(other, name))


def _member(archive: tarfile.TarFile, name: str) -> IO[bytes]:
    found = archive.extractfile(name)
    assert found is not None, f"{name} is no file"
    return found


def _sha256(stream: IO[bytes]) -> str:
    digest = hashlib.sha256()
    while block := stream.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def build(service: str, number: int, directory: Path) -> Image:
    """Builds a service's image without a cache and returns what it holds."""
    tag = f"baton-reproducible-{service}:{number}"
    base = os.environ.get("PYTHON_IMAGE")
    options = ["--build-arg", f"BASE_IMAGE={base}"] if base else []
    dockerfile = f"services/{service}/Dockerfile"
    _docker("build", "--quiet", "--no-cache", *options, "--file", dockerfile, "--tag", tag, ".")
    saved = directory / f"{service}-{number}.tar"
    try:
        _docker("save", "--output", str(saved), tag)
    finally:
        _docker("rmi", tag)
    image = read_image(saved)
    saved.unlink()
    return image


def _docker(*arguments: str) -> None:
    environment = {**os.environ, "DOCKER_BUILDKIT": "1"}
    command = ["docker", *arguments]
    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)  # noqa: S603


def check(service: str, directory: Path, epoch_s: float) -> bool:
    """Builds twice, prints what differs and the digests; returns whether the images are the same.

    They are when nothing differs but times that `rewrite-timestamp` sets.
    """
    first, second = (build(service, number, directory) for number in range(BUILDS))
    differences, lasting = list(compare(first, second)), list(compare(first, second, epoch_s))
    for found in differences:
        note = "" if found in lasting else " (later than SOURCE_DATE_EPOCH)"
        print(f"{service}: layer {found.layer} {found.path}: {', '.join(found.what)}{note}")
    paths = sum(map(len, first.layers))
    print(f"{service}: {paths} paths in {len(first.layers)} layers")
    print(f"  {len(differences)} differ, {len(lasting)} of them in more than times of the build")
    for one, other in zip(first.digests, second.digests, strict=False):
        print(f"  sha256:{one} {'=' if one == other else '!='} sha256:{other}")
    return not lasting


def main() -> int:
    """Checks the services named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("services", nargs="+", metavar="SERVICE")
    epoch_s = float(os.environ.get("SOURCE_DATE_EPOCH", "inf"))
    services = parser.parse_args().services
    with tempfile.TemporaryDirectory() as directory:
        same = [check(name, Path(directory), epoch_s) for name in services]
    return 0 if all(same) else 1


if __name__ == "__main__":
    sys.exit(main())
