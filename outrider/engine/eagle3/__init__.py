"""Feature drafts in the EAGLE-3 layout (arXiv 2503.01840): checkpoint, network, engine."""
