"""From a model folder to weights in memory: configuration, checkpoint, vocabulary."""
