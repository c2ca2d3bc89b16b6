"""Tokens in, logits out: the model, its slot cache and the scheduler of passes.

Knows neither text nor gRPC.
"""
