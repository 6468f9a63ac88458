"""Fetch the models that a job names to folders on this machine, and read their configs."""
