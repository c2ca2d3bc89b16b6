"""Tests of conversations, tokenizer, vocabularies and streamed text."""
