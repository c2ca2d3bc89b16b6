"""Message classes and codecs, addresses, channels, gRPC interceptors."""
