"""Text and tokens: conversations, the tokenizer, vocabularies, and text as it is streamed."""
