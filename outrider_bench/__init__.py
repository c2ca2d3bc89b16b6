"""`outrider bench`: the pair against its baselines, all in one run."""
