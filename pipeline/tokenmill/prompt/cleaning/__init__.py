"""Cleaning of texts before they are put into a prompt."""
