"""What is done to a row: one sub-folder a family of tasks."""
