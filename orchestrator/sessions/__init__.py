"""Sessions with the draft and target services: streams, and what each side holds."""
