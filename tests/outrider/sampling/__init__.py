"""Tests of sampling and the acceptance rule."""
