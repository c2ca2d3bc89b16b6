"""The draft policy: whether, how much and how long to draft or wait."""
