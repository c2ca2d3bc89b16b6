"""Tests of how models are loaded."""
