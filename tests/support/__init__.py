"""Helpers that several tests share: fakes, schedules, tiny pairs."""
