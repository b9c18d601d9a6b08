"""Finding a segment again: the same file, the same process, or a refusal."""

import os
from dataclasses import replace

import pytest

from baton.errors import PreconditionError
from baton.kv.segment import Place, Segment, here, map_file, open_place, unmap


def test_segment_is_one_memory_under_two_mappings() -> None:
    segment = Segment(1 << 20)
    descriptor = open_place(Place.decode(here(segment.descriptor).encode()), os.O_RDWR)
    address = map_file(descriptor, segment.size_bytes)
    os.close(descriptor)

    segment.buffer[5] = 77

    assert memoryview(segment.buffer)[5] == 77
    assert address != segment.address
    unmap(address, segment.size_bytes)


def test_segment_closes_its_file_with_itself() -> None:
    segment = Segment(4096)
    descriptor = segment.descriptor
    del segment
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"boot_id": bytes(16)}, "another host"),
        ({"process_id": 1}, "cannot be opened|another process"),
        ({"started_ticks": 1}, "another process"),
        ({"inode": 1}, "another process"),
        ({"descriptor": 987_654}, "cannot be opened"),
    ],
)
def test_other_places_are_refused(change: dict[str, object], says: str) -> None:
    segment = Segment(4096)
    place = replace(here(segment.descriptor), **change)

    with pytest.raises(PreconditionError, match=says) as caught:
        open_place(place, os.O_RDWR)

    assert caught.value.reason == "OTHER_HOST"


def test_damaged_places_are_refused() -> None:
    with pytest.raises(PreconditionError):
        Place.decode(b"short")
