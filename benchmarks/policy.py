"""The policy's speed with good and bad drafts, in simulated pairs.

    python -m benchmarks.policy [--seeds 16]

Only the policy's choices are measured: steps take exactly the times of its machines
(`outrider_bench/models/simulated_pair.py`). The speed is that of all texts together, over the
target alone: of the first few that an orchestrator sees, in which it learns, and of many. No
prompt lookup.
"""

import argparse
import random
import statistics

from outrider_bench.models.simulated_pair import MACHINES, Machine, SimulatedPair
from outrider_bench.output.results_file import write_result

ACCEPTANCES = (0.0, 0.2, 0.35, 0.45, 0.55, 0.65, 0.8, 0.95)
TEXTS = {"first 8 texts of 32 tokens": (8, 32), "20 texts of 64 tokens": (20, 64)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=16)
    parser.add_argument("--name", default="policy", help="of the result's file")
    args = parser.parse_args()
    speedups = {}
    for texts, (num_texts, num_tokens) in TEXTS.items():
        print(f"{texts:27}", *(f"{acceptance:6}" for acceptance in ACCEPTANCES))
        speedups[texts] = {
            machine.name: _speedups(machine, num_texts, num_tokens, args.seeds)
            for machine in MACHINES
        }
    print(write_result(args.name, vars(args), acceptances=ACCEPTANCES, speedups=speedups))


def _speedups(machine: Machine, num_texts: int, num_tokens: int, seeds: int) -> list[float]:
    """For each acceptance, over all seeds."""
    row = []
    for acceptance in ACCEPTANCES:
        pairs = [SimulatedPair(machine, acceptance, random.Random(seed)) for seed in range(seeds)]
        for pair in pairs:
            for _ in range(num_texts):
                pair.write(num_tokens)
        row.append(round(statistics.mean(pair.speedup for pair in pairs), 3))
    print(f"{machine.name:27}", *(f"{speedup:6.3f}" for speedup in row), flush=True)
    return row


if __name__ == "__main__":
    main()
