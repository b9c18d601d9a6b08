"""Token ids into and out of messages as the bytes they are on the wire.

A repeated field hands its elements out one by one, which for a long prompt costs a router more
than placing it. Packed fixed32 is little-endian u32, as an array of the same holds it.
"""

import sys
from array import array
from collections.abc import Sequence
from typing import Any

from baton.blocks import token_bytes

assert sys.byteorder == "little", "token ids travel as this machine's own u32"

_LENGTH_DELIMITED = 2


def take_ids(message: Any, field: str) -> "array[int]":
    """Returns a repeated fixed32 field of a message, which stays as it is."""
    alone = type(message)()
    alone.CopyFrom(message)
    for descriptor, _ in message.ListFields():
        if descriptor.name != field:
            alone.ClearField(descriptor.name)
    count = len(getattr(message, field))
    ids = array("I")
    ids.frombytes(alone.SerializeToString()[-4 * count :] if count else b"")
    return ids


def put_ids(message: Any, number: int, ids: Sequence[int]) -> None:
    """Adds ids to the repeated fixed32 field of this number."""
    data = token_bytes(ids)
    tag = (number << 3) | _LENGTH_DELIMITED
    message.MergeFromString(_varint(tag) + _varint(len(data)) + data)


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
