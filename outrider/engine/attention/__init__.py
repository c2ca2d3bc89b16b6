"""Attention over slots of the KV cache, and rotary embeddings."""
