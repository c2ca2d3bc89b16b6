"""Tests of the embedded pair."""
