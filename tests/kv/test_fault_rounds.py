"""A few of the rounds that `make test-kv ROUNDS=1000` runs: real processes, random faults."""

import pytest

from tests.support.fault_rounds import run_rounds
from tests.support.faulty_worker import NIXL, SHARED


@pytest.mark.parametrize(("path", "seed"), [(SHARED, 11), (NIXL, 12)])
async def test_random_faults_leak_nothing_and_no_token_is_wrong(path: str, seed: int) -> None:
    outcome = await run_rounds(6, seed, path)

    assert outcome.rounds == 6
    assert outcome.remote
    assert outcome.wrong_answers == 0
    assert outcome.leaked_blocks == 0
