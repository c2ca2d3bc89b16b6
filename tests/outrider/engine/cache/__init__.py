"""Tests of the KV cache and its size."""
