"""Tests of attention and rotary embeddings."""
