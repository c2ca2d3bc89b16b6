"""Layers, kernels and recorded passes for GPUs; imported for CUDA devices only."""
