"""What a run shows and counts: progress, screen, events, metrics, traces."""
