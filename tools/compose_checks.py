"""Checks a running mesh from outside: `python tools/compose_checks.py HOST:PORT PREFILL_WORKERS`.

Waits until the router shows exactly that many prefill workers, streams an answer, then streams long
prompts until each prefill worker has computed one and pushed its KV to the decode worker. Prints
what it saw; a failed check exits with 1 and says which.
"""

import argparse
import asyncio
import sys
import time
from itertools import count

from baton.client import Chunk, Completion, Prompt, RequestOptions, RouterClient
from baton.errors import BatonError
from baton.requests import SamplingParams
from baton.v1 import types_pb2

FLEET_TIMEOUT_S = 30.0
ANSWER_TIMEOUT_S = 60.0
TRIES_PER_WORKER = 8
TOKENS = 32
LINES = 40
"""Lines of a long prompt: several hundred tokens, well above the offload threshold."""


class CheckError(Exception):
    """The mesh does not do what it should."""


async def prefill_workers(client: RouterClient, expected: int) -> set[str]:
    """Returns the prefill workers' ids once there are `expected`, and a decode worker."""
    deadline_s = time.monotonic() + FLEET_TIMEOUT_S
    while True:
        workers = (await client.fleet()).workers
        found = {w.worker_id for w in workers if w.role == types_pb2.WORKER_ROLE_PREFILL}
        if len(found) == expected and len(workers) > expected:
            return found
        if time.monotonic() > deadline_s:
            raise CheckError(
                f"{expected} prefill workers and a decode worker expected after "
                f"{FLEET_TIMEOUT_S:.0f} s, the router shows {[w.worker_id for w in workers]}"
            )
        await asyncio.sleep(0.2)


async def stream(client: RouterClient, text: str) -> tuple[list[Chunk], Completion]:
    """Returns the parts of a greedy answer of TOKENS tokens and how it ended."""
    sampling = SamplingParams(max_tokens=TOKENS, temperature=0.0, ignore_eos=True)
    options = RequestOptions(sampling=sampling, timeout_s=ANSWER_TIMEOUT_S)
    chunks: list[Chunk] = []
    async for part in client.generate(Prompt(text=text), options):
        if isinstance(part, Completion):
            return chunks, part
        chunks.append(part)
    raise CheckError("the stream ended without a completion")


async def check_stream(client: RouterClient) -> None:
    """Streams a short answer and checks that it comes in parts and is complete."""
    chunks, done = await stream(client, "The with statement is used to")
    text = "".join(chunk.text for chunk in chunks)
    tokens = sum(len(chunk.output_ids) for chunk in chunks)
    if not text or tokens != TOKENS or done.completion_tokens != TOKENS or len(chunks) < 2:
        raise CheckError(f"{TOKENS} tokens expected, got {tokens} in {len(chunks)} parts: {text!r}")
    print(f"streamed {tokens} tokens in {len(chunks)} parts: {text[:60]!r}...")


def long_prompt(number: int) -> str:
    """Returns a text that shares no block with that of another number."""
    lines = (f"{number}.{line} The file is opened, read and closed again." for line in range(LINES))
    return "\n".join(lines)


async def check_remote_prefill(client: RouterClient, expected: set[str]) -> None:
    """Streams long prompts until each expected worker has prefilled one remotely."""
    seen: dict[str, Completion] = {}
    first = time.time_ns()  # another run meets no prefix of this one
    for number in count(first):
        if len(seen) == len(expected):
            break
        if number - first == TRIES_PER_WORKER * len(expected):
            raise CheckError(f"of {sorted(expected)} only {sorted(seen)} computed prompts")
        done = (await stream(client, long_prompt(number)))[1]
        if not done.is_remote_prefill or not done.kv_bytes:
            raise CheckError(f"a long prompt was prefilled locally: {done.prefill_reason}")
        if done.prefill_worker_id not in expected:
            raise CheckError(f"unknown prefill worker {done.prefill_worker_id}")
        seen[done.prefill_worker_id] = done
    for worker, done in sorted(seen.items()):
        print(
            f"{worker} prefilled {done.prompt_tokens} tokens and sent {done.kv_bytes} bytes of KV "
            f"to {done.decode_worker_id} in {1000 * done.timing.kv_transfer_s:.1f} ms; "
            f"TTFT {1000 * done.timing.ttft_s:.0f} ms"
        )


async def check(address: str, prefill: int) -> None:
    """Runs all checks. Raises CheckError, or BatonError where a call fails."""
    async with RouterClient(address) as client:
        workers = await prefill_workers(client, prefill)
        print(f"{address} shows {len(workers)} prefill workers: {', '.join(sorted(workers))}")
        await check_stream(client)
        await check_remote_prefill(client, workers)


def main() -> int:
    """Reads the arguments; returns the exit code."""
    parser = argparse.ArgumentParser(description="Checks a running mesh from outside.")
    parser.add_argument("router", metavar="HOST:PORT")
    parser.add_argument("prefill", type=int, help="how many prefill workers there are")
    given = parser.parse_args()
    try:
        asyncio.run(check(given.router, given.prefill))
    except (CheckError, BatonError) as error:
        print(f"failed: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
