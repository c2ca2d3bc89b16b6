"""Baselines of the pair: transformers, and the loop in one process."""
