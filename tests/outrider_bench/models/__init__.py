"""Tests of the models of the loop."""
