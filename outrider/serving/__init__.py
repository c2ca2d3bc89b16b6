"""The life of a model service: loading, health, calls, errors, shutdown."""
