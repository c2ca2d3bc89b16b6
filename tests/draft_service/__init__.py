"""Tests of the draft service."""
