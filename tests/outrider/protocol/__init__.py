"""Tests of addresses, channels and interceptors."""
