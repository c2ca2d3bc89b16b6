"""Tests of the decode loop."""
