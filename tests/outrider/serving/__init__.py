"""Tests of the life of a model service."""
