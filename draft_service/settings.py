"""Defaults of the command line, in a module that does not import torch."""

DEFAULT_NUM_PREDRAFTS = 4

# A proposal ends where the chance that all of it is accepted is less.
DEFAULT_MIN_CONFIDENCE = 0.3
