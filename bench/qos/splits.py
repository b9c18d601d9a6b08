"""`python -m bench.qos.splits`: how many prefill workers go with one decode worker on azure-code.

For each number the load up to which the mesh without admission serves 90 % within both targets,
and what that is per worker: where that is highest, neither pool is bought in vain.
"""

from dataclasses import replace
from typing import Annotated

import typer

from bench.qos.scenarios import SEEDS, azure_code
from bench.qos.simulated import capacity
from sim.costs.presets import hardware
from sim.fleet import FleetSpec


def main() -> None:
    """Runs the command line."""
    typer.run(_command)


def _command(
    requests: Annotated[int, typer.Option(help="Half the requests of the trace.")] = 1000,
    most: Annotated[int, typer.Option(help="Prefill workers to go up to.")] = 8,
) -> None:
    """Print the capacity of each fleet, in multiples of the trace."""
    base = azure_code(hardware("h100"), requests, 1)
    print("fleet   capacity  per worker")
    for prefill in range(1, most + 1):
        fleet = FleetSpec(base.fleet.hardware, prefill, 1)
        found = capacity(replace(base, fleet=fleet), SEEDS[0], steps=8)
        print(f"{fleet.label:8}{found:8.2f}{found / fleet.workers:12.3f}", flush=True)


if __name__ == "__main__":
    main()
