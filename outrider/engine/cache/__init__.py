"""The KV cache, and how much memory it may take."""
