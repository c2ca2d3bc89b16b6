"""Drafters, which propose tokens: by a small model, or by a recorded text."""
