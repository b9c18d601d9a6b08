"""A few of the rounds that `make test-kv ROUNDS=1000` runs: real processes, random faults."""

from tests.support.fault_rounds import run_rounds


async def test_random_faults_leak_nothing_and_no_token_is_wrong() -> None:
    outcome = await run_rounds(6, seed=11)

    assert outcome.rounds == 6
    assert outcome.remote
    assert outcome.wrong_answers == 0
    assert outcome.leaked_blocks == 0
