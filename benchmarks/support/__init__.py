"""What several benchmarks need: ghz, models with random weights, recorded texts."""
