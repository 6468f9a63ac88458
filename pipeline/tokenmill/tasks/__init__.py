"""What is done to a row: one sub-folder per family of tasks."""
