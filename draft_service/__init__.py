"""The draft service: proposes tokens that the target service verifies."""
