"""Outrider: speculative decoding as a gRPC service pair."""

__version__ = "0.1.0"
