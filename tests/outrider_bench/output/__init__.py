"""Tests of tables and drawings."""
