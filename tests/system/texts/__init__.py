"""Tests of generated texts over real RPCs."""
