"""Tests of the orchestrator: admission, forecasts, and load beyond capacity."""
