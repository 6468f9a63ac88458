"""Length policies for texts longer than the context: reject, truncate or chunk."""
