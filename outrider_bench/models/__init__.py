"""What is made of runs: counts, ratios and costs; and a simulated pair."""
