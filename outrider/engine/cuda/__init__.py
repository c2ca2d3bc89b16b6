"""Layers, kernels and recorded passes for GPUs. Imported for CUDA devices only."""
