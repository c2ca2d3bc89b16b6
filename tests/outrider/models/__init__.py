"""Tests of hub, tokenizer files and chat templates."""
