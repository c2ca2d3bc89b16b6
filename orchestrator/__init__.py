"""The orchestrator: the decode loop and the public API. Does not import torch."""
