"""The orchestrator: the accept/correct loop and the public API. Imports no torch."""
