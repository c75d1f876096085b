"""What to try next: search spaces, samplers, baselines, and the stopper."""
