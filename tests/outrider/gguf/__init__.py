"""Tests of the conversion of GGUF files."""
