"""Tests of how systems are started and measured."""
