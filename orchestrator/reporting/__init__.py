"""Reports about a request: latency report, speculation counts and trace."""
