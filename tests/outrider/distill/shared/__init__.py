"""Tests of `outrider distill`."""
