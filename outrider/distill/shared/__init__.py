"""What drafts of all kinds are made with: texts, what the target says of them, training."""
