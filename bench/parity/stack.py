"""The mesh that the simulator is compared with: this machine's processes."""

from baton.compute import ComputeOptions
from baton.local.plan import StackOptions

BUDGET = 512
"""Tokens of one step, on both sides."""


def options(engine: str, prefill: int, decode: int) -> StackOptions:
    """Returns a stack with the chapter's policy, which decides the same whatever was measured."""
    environ = {
        "BATON_ENGINE__KIND": engine,
        "BATON_SPLIT_POLICY__POLICY": "weighted",
        "BATON_QOS__ENABLE_EARLY_REJECTION": "false",
        "OMP_NUM_THREADS": "1",
    }
    return StackOptions(
        prefill=prefill,
        decode=decode,
        router_port=0,
        environ=environ,
        compute=ComputeOptions(token_budget=BUDGET),
    )
