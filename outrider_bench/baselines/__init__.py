"""What the pair is compared with: transformers, and the loop in one process."""
