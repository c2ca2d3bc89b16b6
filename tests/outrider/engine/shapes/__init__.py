"""Tests of the choice of kernel shapes."""
