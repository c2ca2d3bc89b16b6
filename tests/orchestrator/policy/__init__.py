"""Tests of the draft policy."""
