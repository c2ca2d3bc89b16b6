"""Feature drafts: one layer that reads the target's hidden states (EAGLE-3)."""
