"""From `model.source` to a folder on this machine, and what its config says."""
