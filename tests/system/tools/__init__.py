"""Tests of commands and of what watches, with real processes."""
