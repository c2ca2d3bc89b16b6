"""Tests of the GPU code, by recorded operators and Triton's interpreter."""
