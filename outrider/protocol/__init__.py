"""Messages, their codecs, addresses, channels and interceptors of calls."""
