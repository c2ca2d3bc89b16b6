"""Starts and measures systems: hosts, delays, prompts, sections."""
