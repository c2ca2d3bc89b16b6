"""Measurements: each script prints a table and writes JSON into benchmarks/results."""
