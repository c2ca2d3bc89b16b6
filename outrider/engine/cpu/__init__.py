"""Linear layers, fused layers and the calibration of kernels for CPUs."""
