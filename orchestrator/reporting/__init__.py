"""What is told of a request: the latency report and the trace."""
