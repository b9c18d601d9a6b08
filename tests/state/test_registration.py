"""Leases, the handshake and takeovers on a real Redis."""

from dataclasses import replace

import pytest
from redis.asyncio import Redis

from baton.errors import RegistrationError, StartupError
from baton.state import keys
from baton.state.records import WorkerRole, decode_record, decode_report
from baton.state.registry import Registration, RegistrationState
from tests.support.fleet import worker_record, worker_stats
from tests.support.redis import RedisServer
from tests.support.waiting import eventually

TTL_S = 0.6


async def test_registered_worker_is_readable_until_it_leaves(redis: Redis) -> None:
    record = worker_record()

    async with Registration(redis, record) as registration:
        assert registration.state is RegistrationState.JOINED
        assert decode_record(await redis.get(keys.record("decode-0"))) == record
        assert await redis.zrange(keys.leases(), 0, -1) == [b"decode-0"]

    assert await redis.exists(keys.record("decode-0"), keys.lease("decode-0")) == 0
    assert await redis.zcard(keys.leases()) == 0


async def test_everything_written_has_a_life_time(redis: Redis) -> None:
    async with Registration(redis, worker_record()) as registration:
        await registration.publish_stats(worker_stats(1.0))
        for key in await redis.keys("*"):
            assert await redis.pttl(key) > 0, key


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("tokenizer_digest", "d2"),
        ("block_size", 32),
        ("hash_scheme", "sha256"),
        ("kv_bytes_per_token", 1024),
        ("kv_layout", "float16/4"),
        ("transfer_backend", "nixl-ucx"),
    ],
)
async def test_worker_that_does_not_fit_is_refused(
    redis: Redis, field: str, value: str | int
) -> None:
    fleet = worker_record()
    misfit = replace(worker_record("decode-1", "b1"), **{field: value})

    async with Registration(redis, fleet):
        with pytest.raises(RegistrationError) as caught:
            await Registration(redis, misfit).__aenter__()

        assert caught.value.field == field
        assert repr(str(value)) in caught.value.message
        assert repr(str(getattr(fleet, field))) in caught.value.message
        assert await redis.get(keys.record("decode-1")) is None


async def test_another_model_has_its_own_contract(redis: Redis) -> None:
    other = replace(worker_record("decode-1", "b1", model="other"), block_size=32)

    async with Registration(redis, worker_record()), Registration(redis, other) as registration:
        assert registration.state is RegistrationState.JOINED


async def test_router_is_bound_by_no_contract(redis: Redis) -> None:
    router = replace(worker_record("router-0", "r1", WorkerRole.ROUTER), block_size=0)

    async with Registration(redis, worker_record()), Registration(redis, router) as registration:
        assert registration.state is RegistrationState.JOINED


async def test_contract_ends_with_its_last_worker(redis: Redis) -> None:
    async with Registration(redis, worker_record(), ttl_s=0.1):
        pass
    await eventually(lambda: _is_absent(redis, keys.contract("tiny")))

    misfit = replace(worker_record(incarnation="a2"), block_size=32)
    async with Registration(redis, misfit) as registration:
        assert registration.state is RegistrationState.JOINED


async def test_beat_renews_the_lease(redis: Redis) -> None:
    async with Registration(redis, worker_record(), ttl_s=TTL_S):
        await redis.pexpire(keys.lease("decode-0"), 400)

        await eventually(lambda: _lives_longer_than(redis, keys.lease("decode-0"), 400))


async def test_newer_incarnation_takes_over(redis: Redis) -> None:
    newer = worker_record(incarnation="a2")

    async with Registration(redis, worker_record(), ttl_s=TTL_S) as old:
        async with Registration(redis, newer, ttl_s=TTL_S) as new:
            await eventually(lambda: old.is_lost)
            assert not await old.publish_stats(worker_stats(1.0))
            assert new.state is RegistrationState.JOINED
            assert await redis.get(keys.lease("decode-0")) == b"a2"
        assert await redis.get(keys.lease("decode-0")) is None


async def test_leaving_does_not_remove_the_successor(redis: Redis) -> None:
    newer = worker_record(incarnation="a2")
    old = await Registration(redis, worker_record()).__aenter__()

    async with Registration(redis, newer):
        await old.__aexit__(None, None, None)

        assert decode_record(await redis.get(keys.record("decode-0"))) == newer


async def test_registration_is_whole_again_after_redis_lost_everything(redis: Redis) -> None:
    async with Registration(redis, worker_record(), ttl_s=TTL_S):
        await redis.flushall()

        await eventually(lambda: _is_present(redis, keys.record("decode-0")))
        assert await redis.hget(keys.contract("tiny"), "block_size") == b"16"


async def test_registration_survives_an_outage(redis_server: RedisServer, redis: Redis) -> None:
    async with Registration(redis, worker_record(), ttl_s=TTL_S) as registration:
        redis_server.stop()
        await eventually(lambda: registration.state is RegistrationState.AWAY)
        assert not await registration.publish_stats(worker_stats(1.0))

        redis_server.start()

        await eventually(lambda: registration.state is RegistrationState.JOINED)
        assert await redis.exists(keys.record("decode-0")) == 1


async def test_contract_lost_to_a_misfit_is_noticed(redis: Redis) -> None:
    async with Registration(redis, worker_record(), ttl_s=TTL_S) as registration:
        await redis.hset(keys.contract("tiny"), "block_size", "32")

        await eventually(lambda: registration.state is RegistrationState.REFUSED)


async def test_registering_without_redis_fails_with_its_reason(
    redis_server: RedisServer, redis: Redis
) -> None:
    redis_server.stop()

    with pytest.raises(StartupError, match="could not register decode-0"):
        await Registration(redis, worker_record()).__aenter__()


async def test_error_in_the_body_comes_out_as_it_is(redis: Redis) -> None:
    with pytest.raises(ZeroDivisionError):
        async with Registration(redis, worker_record()):
            raise ZeroDivisionError

    assert await redis.exists(keys.lease("decode-0")) == 0


async def test_published_stats_are_readable(redis: Redis) -> None:
    async with Registration(redis, worker_record()) as registration:
        assert await registration.publish_stats(worker_stats(1000.0, queued_requests=3))

        report = decode_report(await redis.get(keys.stats("decode-0")))
        assert (report.incarnation, report.stats.queued_requests) == ("a1", 3)


async def _is_absent(redis: Redis, key: str) -> bool:
    return not await redis.exists(key)


async def _is_present(redis: Redis, key: str) -> bool:
    return bool(await redis.exists(key))


async def _lives_longer_than(redis: Redis, key: str, least_ms: int) -> bool:
    return bool(await redis.pttl(key) > least_ms)
