"""Text and tokens: conversations, tokenizer, vocabularies, streamed text."""
