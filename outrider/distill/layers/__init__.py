"""Drafts made of some of the target's own layers."""
