"""Logs, traces, metrics and histograms."""
