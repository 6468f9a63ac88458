"""`tokenmill init`: a job file for an input."""
