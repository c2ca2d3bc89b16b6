"""Sessions with the draft and target services, and which tokens each service holds."""
