"""Tests of the latency report and the trace."""
