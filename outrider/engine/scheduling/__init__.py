"""Batching of all sessions' jobs: order, slots, batch limits, threads."""
