"""Nothing that comes from outside raises anything but what its reader promises."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz.seeds import seeds
from tests.fuzz.targets import TARGETS

_MUTANTS = 150
_SEEDS = seeds()


@pytest.mark.parametrize("name", TARGETS)
def test_well_formed_input_is_read(name: str) -> None:
    for data in _SEEDS[name]:
        TARGETS[name](data)


@pytest.mark.parametrize("name", TARGETS)
@settings(max_examples=60, deadline=None)
@given(data=st.binary(max_size=400))
def test_noise_raises_only_what_is_promised(name: str, data: bytes) -> None:
    TARGETS[name](data)


@pytest.mark.parametrize("name", TARGETS)
def test_damaged_input_raises_only_what_is_promised(name: str) -> None:
    rng = random.Random(11)
    for _ in range(_MUTANTS):
        TARGETS[name](_mutant(rng.choice(_SEEDS[name]), rng))


def _mutant(data: bytes, rng: random.Random) -> bytes:
    """Returns the input with a few bytes changed, repeated, dropped or put in."""
    damaged = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(damaged) + 1)
        match rng.randrange(4):
            case 0:
                damaged[at : at + 1] = bytes([rng.randrange(256)])
            case 1:
                damaged[at:at] = damaged[at : at + rng.randint(1, 8)]
            case 2:
                del damaged[at : at + rng.randint(1, 4)]
            case _:
                damaged[at:at] = rng.choice(_TOKENS)
    return bytes(damaged)


_TOKENS = (b"null", b"-1", b"1e999", b"\x00", b"\xff", b"[]", b"{}", b'""', b"\n", b",", b"nan")
