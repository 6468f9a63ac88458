"""`init`: a job file made for an input."""
