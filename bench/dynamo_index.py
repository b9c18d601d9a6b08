"""The same index work through `dynamo.llm.RadixTree`. Needs nothing else of this tree.

python bench/dynamo_index.py WORK.pickle     prints one JSON line

The pickle holds (workers, [(chain, worker, parent, stored, removed), ...]). Times are CPU time of
the process, since the binding works on a thread of its own. It stays on one core: handing over to
another one costs the binding several times as much. Making an event's bytes is not counted,
reading them inside the binding is.
"""

import importlib
import json
import os
import pickle
import sys
import time
from typing import Any


def event(number: int, data: dict[str, Any]) -> bytes:
    """Returns an event in the binding's format."""
    return json.dumps({"event_id": number, "data": data, "dp_rank": 0}).encode()


def replay(operations: list[Any]) -> dict[str, float]:
    """Runs all operations; returns mean microseconds."""
    # Looked up at run time: the one place that needs the package, which has no types.
    tree = importlib.import_module("dynamo.llm").RadixTree()
    looking = applying = 0.0
    blocks = 0
    for number, (chain, worker, parent, stored, removed) in enumerate(operations):
        chain = list(chain)
        began = time.process_time()
        tree.find_matches(chain).scores  # noqa: B018 - reading the scores is the work
        looking += time.process_time() - began
        events = []
        if removed:
            events.append(event(2 * number, {"removed": {"block_hashes": list(removed)}}))
        if stored:
            made = [
                {"block_hash": block, "tokens_hash": block, "mm_extra_info": None}
                for block in stored
            ]
            data = {"stored": {"parent_hash": parent, "blocks": made}}
            events.insert(0, event(2 * number + 1, data))
        began = time.process_time()
        for encoded in events:
            tree.apply_event(worker, encoded)
        applying += time.process_time() - began
        blocks += len(stored) + len(removed)
    return {
        "lookup_us": 1e6 * looking / max(1, len(operations)),
        "apply_us_per_block": 1e6 * applying / max(1, blocks),
    }


def main() -> None:
    """Replays the work in the file named on the command line."""
    with open(sys.argv[1], "rb") as file:
        _, operations = pickle.load(file)  # noqa: S301 - written by the benchmark itself
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    print(json.dumps(replay(operations)))


if __name__ == "__main__":
    main()
