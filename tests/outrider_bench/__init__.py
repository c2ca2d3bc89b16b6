"""Tests of `outrider bench` and its models of the loop."""
