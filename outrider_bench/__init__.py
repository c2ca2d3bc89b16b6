"""`outrider bench`: compares the pair with its baselines, all in one run."""

from pathlib import Path

RESULTS = Path("benchmarks/results")

# What `outrider bench` measures, in this order; see `outrider_bench.harness.sections`.
SECTION_NAMES = ("modes", "rtt", "lengths", "acceptance", "capacity")
