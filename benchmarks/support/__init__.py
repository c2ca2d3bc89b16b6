"""Helpers of several benchmarks: ghz, models with random weights, recorded texts, timing."""
