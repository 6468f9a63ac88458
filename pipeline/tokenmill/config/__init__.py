"""Sections of a job file that tasks and engines use too. No I/O."""
