"""One engine kept full: which rows are in it, what repeats, what crashes it."""
