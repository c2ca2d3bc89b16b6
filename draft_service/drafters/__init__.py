"""Drafters, which propose tokens: from a model, or from recorded texts."""
