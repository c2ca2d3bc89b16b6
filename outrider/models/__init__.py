"""Model files: hub, cache, tokenizer files, chat templates."""
