"""HTML pages of results: what each kind of file shows."""
