"""Tests of the repository itself: imports, words, docs, deployment files, generated code."""
