"""Estimates of what a run will take, from a sample of its rows."""
