"""Packs what a GPU machine lacks into one small file, for machines that reach no registry.

    python -m bench.gpu.bundle OUTPUT_DIR

writes OUTPUT_DIR/site.tar.xz: wheels of packages.txt for Python 3.12, unpacked, without the parts
that the benchmark does not use. The kernels of SGLang alone are 383 MB as published and 15 MB here.
"""

import argparse
import fnmatch
import io
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
PYTHON = "3.12"
PLATFORMS = [
    "manylinux_2_39_x86_64",
    "manylinux_2_35_x86_64",
    "manylinux_2_34_x86_64",
    "manylinux_2_31_x86_64",
    "manylinux_2_28_x86_64",
    "manylinux_2_27_x86_64",
    "manylinux_2_26_x86_64",
    "manylinux_2_24_x86_64",
    "manylinux_2_17_x86_64",
    "manylinux_2_5_x86_64",
    "manylinux2014_x86_64",
    "manylinux2010_x86_64",
    "manylinux1_x86_64",
    "any",
]
ALWAYS_OUT = ("*/tests/*", "*.pyi", "*.dist-info/licenses/*", "*.dist-info/RECORD", "*.data/*")
LARGEST_BYTES = 54 * 2**20


@dataclass(frozen=True, slots=True)
class Package:
    """One wheel and the patterns of what is left out of it."""

    requirement: str
    without: tuple[str, ...]


def read_packages(text: str) -> list[Package]:
    """Reads packages.txt."""
    found = []
    for line in text.splitlines():
        words = line.partition("#")[0].split()
        if words:
            found.append(Package(words[0], tuple(word.removeprefix("-") for word in words[1:])))
    return found


def download(requirement: str, directory: Path) -> Path:
    """Downloads one wheel for the GPU machine's Python and returns it."""
    directory.mkdir(parents=True)
    platforms = [word for name in PLATFORMS for word in ("--platform", name)]
    subprocess.run(  # noqa: S603 - our own arguments
        [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:",
         "--python-version", PYTHON, "--implementation", "cp", *platforms, "-d", str(directory),
         requirement],
        check=True,
    )  # fmt: skip
    return next(directory.glob("*.whl"))


def kept(wheel: zipfile.ZipFile, without: Sequence[str]) -> Iterator[zipfile.ZipInfo]:
    """Yields the files of a wheel that go along."""
    for entry in wheel.infolist():
        patterns = (*ALWAYS_OUT, *without)
        if not entry.is_dir() and not any(
            fnmatch.fnmatchcase(entry.filename, pattern) for pattern in patterns
        ):
            yield entry


def pack(packages: Sequence[Package], output: Path) -> None:
    """Writes the bundle and says how large each package was."""
    with (
        tempfile.TemporaryDirectory() as scratch,
        tarfile.open(output, "w:xz", preset=9) as bundle,
    ):
        for number, package in enumerate(packages):
            path = download(package.requirement, Path(scratch) / str(number))
            with zipfile.ZipFile(path) as wheel:
                total = sum(_add(bundle, wheel, it) for it in kept(wheel, package.without))
            print(f"{package.requirement:45} {total / 2**20:8.1f} MiB unpacked", flush=True)


def _add(bundle: tarfile.TarFile, wheel: zipfile.ZipFile, entry: zipfile.ZipInfo) -> int:
    info = tarfile.TarInfo(entry.filename)
    info.size = entry.file_size
    info.mode = (entry.external_attr >> 16) & 0o777 or 0o644
    bundle.addfile(info, io.BytesIO(wheel.read(entry)))
    return entry.file_size


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output_dir", type=Path)
    output_dir = parser.parse_args().output_dir
    output_dir.mkdir(parents=True, exist_ok=True)
    output = output_dir / "site.tar.xz"
    pack(read_packages((HERE / "packages.txt").read_text(encoding="utf-8")), output)
    size = output.stat().st_size
    print(f"{output}: {size / 2**20:.1f} MiB")
    if size > LARGEST_BYTES:
        sys.exit(f"it must stay under {LARGEST_BYTES / 2**20:.0f} MiB: leave more out")


if __name__ == "__main__":
    main()
