"""Tests of the benchmarks and of the results that are committed."""
