"""The comparison of two builds of an image finds each way in which they can differ."""

import io
import json
import tarfile
from pathlib import Path

import pytest

from tools.supply.reproducible import Difference, compare, read_image


def layer(content: bytes = b"x = 1\n", name: str = "opt/a.py", **changes: object) -> bytes:
    member = tarfile.TarInfo(name)
    member.size, member.mode, member.mtime = len(content), 0o644, 1580601600
    for attribute, value in changes.items():
        setattr(member, attribute, value)
    return archive([(member, content)])


def archive(members: list[tuple[tarfile.TarInfo, bytes]]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for member, content in members:
            tar.addfile(member, io.BytesIO(content))
    return out.getvalue()


def saved(folder: Path, *layers: bytes) -> Path:
    names = [f"{number}/layer.tar" for number in range(len(layers))]
    manifest = json.dumps([{"Layers": names}]).encode()
    members = []
    for name, content in zip(["manifest.json", *names], [manifest, *layers], strict=True):
        member = tarfile.TarInfo(name)
        member.size = len(content)
        members.append((member, content))
    path = folder / f"{len(list(folder.iterdir()))}.tar"
    path.write_bytes(archive(members))
    return path


def test_two_builds_of_the_same_bytes_do_not_differ(tmp_path: Path) -> None:
    first, second = (read_image(saved(tmp_path, layer(), layer())) for _ in range(2))
    assert not list(compare(first, second))
    assert first.digests == second.digests


@pytest.mark.parametrize(
    ("changed", "what"),
    [
        (layer(b"x = 2\n"), ("content",)),
        (layer(mtime=1580601601), ("modified_s",)),
        (layer(mode=0o755), ("mode",)),
        (layer(uid=10001, gid=10001), ("owner", "group")),
    ],
)
def test_a_path_that_differs_is_named_with_what_differs(
    tmp_path: Path, changed: bytes, what: tuple[str, ...]
) -> None:
    first, second = (read_image(saved(tmp_path, layer(), last)) for last in (layer(), changed))
    assert list(compare(first, second)) == [Difference(1, "opt/a.py", what)]
    assert first.digests[0] == second.digests[0]
    assert first.digests[1] != second.digests[1]


def test_a_path_or_a_layer_of_one_build_alone_is_found(tmp_path: Path) -> None:
    one = read_image(saved(tmp_path, layer()))
    renamed = read_image(saved(tmp_path, layer(name="opt/b.py")))
    assert list(compare(one, renamed)) == [
        Difference(0, "opt/a.py", ("presence",)),
        Difference(0, "opt/b.py", ("presence",)),
    ]
    longer = read_image(saved(tmp_path, layer(), layer()))
    assert Difference(0, "", ("layers",)) in list(compare(one, longer))


def test_times_of_the_build_are_forgiven_but_nothing_else(tmp_path: Path) -> None:
    times = read_image(saved(tmp_path, layer(mtime=1700000000)))
    later = read_image(saved(tmp_path, layer(mtime=1700000009)))
    other = read_image(saved(tmp_path, layer(b"x = 2\n", mtime=1700000009)))
    assert not list(compare(times, later, epoch_s=1690000000))
    assert list(compare(times, other, epoch_s=1690000000)) == [
        Difference(0, "opt/a.py", ("content",))
    ]
    assert list(compare(times, later, epoch_s=1700000005))
