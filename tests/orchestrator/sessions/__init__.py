"""Tests of the sessions with draft and target."""
