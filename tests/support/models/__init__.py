"""Tiny models that tests make."""
