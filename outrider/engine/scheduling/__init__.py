"""Jobs of many sessions in shared forward passes: order, slots, batch limits, threads."""
