"""The lifecycle of a model service: loading, health, calls, errors, shutdown."""
