"""Tokens in, logits out: the model, its KV cache and the scheduler of passes.

Independent of text and of gRPC.
"""
