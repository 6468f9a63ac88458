"""Texts longer than the context: reject, truncate or chunk."""
