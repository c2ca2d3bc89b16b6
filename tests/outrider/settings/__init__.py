"""Tests of flags, environment variables and the TOML file."""
