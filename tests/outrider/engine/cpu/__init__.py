"""Tests of layers and calibration for CPUs."""
